package engine

import (
	"context"

	"cairn/internal/repo"
)

// FreedBytes tells how many bytes of the repository, all copies, only the
// doomed points use: their point packs whole, and elsewhere every record of
// which no survivor uses anything. Packs are given back when nothing of them
// is needed, and else when their needed parts are copied out. rows holds every
// pack row. Memory follows the doomed points' records and the nodes of all.
func (e *Engine) FreedBytes(ctx context.Context, rows []PackRow, doomed, survivors []PointRef) (int64, error) {
	fates := make(map[repo.PackID]repo.PackFate, len(rows))
	sizes := make(map[repo.PackID]int64)
	for _, row := range rows {
		id, err := repo.ParsePackID(row.ID)
		if err != nil {
			return 0, err
		}
		fates[id] = repo.PackFate{Live: row.Live, Stored: true}
		if row.Kind == repo.PointKind.String() {
			sizes[id] = row.Bytes
		}
	}
	m := e.r.NewMarker(fates)
	mark := func(owner repo.Owner, points []PointRef) error {
		for _, p := range points {
			pk, content, err := p.pack()
			if err != nil {
				return err
			}
			if err := m.Point(ctx, owner, pk, content); err != nil {
				return err
			}
		}
		return nil
	}
	if err := mark(0, doomed); err != nil {
		return 0, err
	}
	// Only what the doomed points use matters from here on.
	m.Narrow()
	if err := mark(repo.Many, survivors); err != nil {
		return 0, err
	}
	return m.Unique(1, func(id repo.PackID) int64 { return sizes[id] })[0], nil
}

package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"cairn/client"
)

func (a *app) snapshotTree() *cobra.Command {
	return &cobra.Command{
		Use: "tree VOLUME", Short: "Draw the chains of a volume's snapshots", Args: arity(1, 1),
		Long: `Draw the chains of a volume's snapshots, oldest first. A snapshot builds on the
one above it in its column; after an apply a chain branches. The head is
marked: the next incremental builds on it.`,
		ValidArgsFunction: a.completeVolumes(1),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			ids, err := s.resources(ctx, args[0])
			if err != nil {
				return err
			}
			p, err := s.client.AllSnapshots(ctx, client.SnapshotFilter{ResourceID: ids[0]})
			if err != nil {
				return err
			}
			if s.output == outputJSON {
				return s.printJSON(p)
			}
			if len(p.Snapshots) == 0 {
				s.note("%s has no snapshots; take one with: cairn snapshot create %s --name NAME", ids[0], ids[0])
				return nil
			}
			return s.printLines(drawTree(p.Snapshots))
		}),
	}
}

// treeLine is one snapshot in the drawing.
type treeLine struct {
	branch string // what stands before the id
	point  client.Snapshot
}

// drawTree draws every chain, one after the other. An only child stands right
// below its parent, so that a long chain stays narrow; siblings fork.
func drawTree(points []client.Snapshot) string {
	known := map[string]bool{}
	for _, p := range points {
		known[p.ID] = true
	}
	var roots []client.Snapshot
	children := map[string][]client.Snapshot{}
	for _, p := range points {
		if p.ParentID == client.ParentSelf || p.ParentID == p.ID || !known[p.ParentID] {
			roots = append(roots, p)
		} else {
			children[p.ParentID] = append(children[p.ParentID], p)
		}
	}
	sortByTime(roots)
	var b strings.Builder
	for i, r := range roots {
		if i > 0 {
			b.WriteString("\n")
		}
		writeChain(&b, r, children)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func sortByTime(points []client.Snapshot) {
	slices.SortFunc(points, func(a, b client.Snapshot) int {
		return cmp.Or(a.SnapshotTime.Compare(b.SnapshotTime.Time), a.CreateTime.Compare(b.CreateTime.Time), cmp.Compare(a.ID, b.ID))
	})
}

func writeChain(b *strings.Builder, root client.Snapshot, children map[string][]client.Snapshot) {
	lines := layOut(nil, root, "", "", children)
	idWidth, nameWidth := 0, 0
	for _, l := range lines {
		idWidth = max(idWidth, runes(l.branch)+runes(l.point.ID))
		nameWidth = max(nameWidth, runes(l.point.Name))
	}
	for _, l := range lines {
		p := l.point
		taken := firstOf(p.SnapshotTime.String(), "not yet taken       ")
		fmt.Fprintf(b, "%s%s%s  %-11s  %s  %9s  %s%s  %s%s\n",
			l.branch, p.ID, pad(idWidth-runes(l.branch)-runes(p.ID)), kindOf(p), taken, formatBytes(p.SizeBytes),
			printable(p.Name), pad(nameWidth-runes(p.Name)), mark(p.Status != "available" || p.TransitionStatus != "" || bool(p.Damaged), snapshotState(p)+"  "),
			mark(bool(p.IsHead), "◀ head"))
	}
}

// layOut gives the lines of p and all below it: first stands before p, rest
// before what follows in its column. It ends since each point has one parent.
func layOut(lines []treeLine, p client.Snapshot, first, rest string, children map[string][]client.Snapshot) []treeLine {
	lines = append(lines, treeLine{first + "● ", p})
	below := children[p.ID]
	sortByTime(below)
	for i, c := range below {
		switch {
		case len(below) == 1:
			lines = layOut(lines, c, rest, rest, children)
		case i < len(below)-1:
			lines = layOut(lines, c, rest+"├─", rest+"│ ", children)
		default:
			lines = layOut(lines, c, rest+"└─", rest+"  ", children)
		}
	}
	return lines
}

func runes(s string) int { return len([]rune(s)) }

func pad(n int) string { return strings.Repeat(" ", max(n, 0)) }

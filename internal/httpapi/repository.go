package httpapi

import (
	"context"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"cairn/internal/service"
)

type scrubQuery struct {
	Zoned
	Repair string  `query:"repair" enum:"0,1" doc:"1: heal what can be healed"`
	Budget integer `query:"budget" doc:"bytes to read, of what was not verified for longest; default: everything"`
}

func (a *api) scrub(ctx context.Context, in *scrubQuery) (*JobOutput, error) {
	var opts service.ScrubOptions
	var err error
	if opts.Repair, err = flag("repair", in.Repair); err != nil {
		return nil, err
	}
	if opts.Budget, err = byteCount("budget", in.Budget); err != nil {
		return nil, err
	}
	j, err := a.service.Scrub(ctx, in.origin(ctx), opts)
	return started(ctx, j, err)
}

// byteCount reads a number of bytes; 0 if there is none.
func byteCount(parameter string, in integer) (int64, error) {
	text := strings.TrimSpace(string(in))
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n <= 0 {
		return 0, badParameter(parameter, "%s is %q; send a number of bytes above 0", parameter, clip(text))
	}
	return n, nil
}

type pruneQuery struct {
	Zoned
	DryRun   string  `query:"dry_run" enum:"0,1" doc:"1: only find out what a prune would free"`
	EmptyBin string  `query:"empty_bin" enum:"0,1" doc:"1: deleted points cease at once, and cannot be brought back"`
	MaxCopy  integer `query:"max_copy" doc:"bytes that may be copied to get at garbage; default: the server's setting"`
}

func (a *api) prune(ctx context.Context, in *pruneQuery) (*JobOutput, error) {
	var opts service.PruneOptions
	var err error
	if opts.DryRun, err = flag("dry_run", in.DryRun); err != nil {
		return nil, err
	}
	if opts.EmptyBin, err = flag("empty_bin", in.EmptyBin); err != nil {
		return nil, err
	}
	if opts.MaxCopy, err = byteCount("max_copy", in.MaxCopy); err != nil {
		return nil, err
	}
	j, err := a.service.Prune(ctx, in.origin(ctx), opts)
	return started(ctx, j, err)
}

type leaseBody struct {
	_         struct{}   `additionalProperties:"true"`
	Resources stringList `json:"resources" doc:"deleted points"`
}

type leaseInput struct {
	Zoned
	Body Body[leaseBody]
}

func (a *api) lease(ctx context.Context, in *leaseInput) (*JobOutput, error) {
	body, err := in.Body.get()
	if err != nil {
		return nil, err
	}
	ids, err := needIDs("resources", "ss-ABCDEFGH", body.Resources)
	if err != nil {
		return nil, err
	}
	requestOf(ctx).note(slog.Any("ids", ids))
	j, err := a.service.Undelete(ctx, service.SnapshotSet{Origin: in.origin(ctx), IDs: ids})
	return started(ctx, j, err)
}

func (a *api) registerRepository() {
	const tag = "repository"
	register(a, call{http.MethodPost, under("/repository/scrub"), "scrubRepository", tag, "Read and check everything that is stored", 0}, a.scrub)
	register(a, call{http.MethodPost, under("/repository/prune"), "pruneRepository", tag, "Give the space back that nothing needs", 0}, a.prune)
	register(a, call{http.MethodPost, under("/lease"), "leaseResources", "volume_snapshots", "Bring deleted points back out of the recycle bin", 0}, a.lease)
}

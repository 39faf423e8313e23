package httpapi

import (
	"context"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"cairn/internal/service"
)

func (a *api) scrub(ctx context.Context, in *Zoned) (*JobOutput, error) {
	j, err := a.service.Scrub(ctx, in.Zone, requestOf(ctx).id)
	return started(ctx, j, err)
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
	if text := strings.TrimSpace(string(in.MaxCopy)); text != "" {
		if opts.MaxCopy, err = strconv.ParseInt(text, 10, 64); err != nil || opts.MaxCopy <= 0 {
			return nil, badParameter("max_copy", "max_copy is %q; send a number of bytes above 0", clip(text))
		}
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

package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"cairn/client"
	"cairn/internal/errs"
)

func (a *app) volumeFill() *cobra.Command {
	return &cobra.Command{
		Use: "fill VOLUME...", Short: "Make volumes that are read on demand independent of the repository", Args: arity(1, unlimited),
		Long: `Let the server fetch in the background what volumes still need of the
repository, which cairn snapshot serve --writable and create-volume --on-demand
leave there. cairn volume wait waits for the end of it.`,
		ValidArgsFunction: a.completeVolumes(unlimited),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			ids, err := s.volumes(ctx, args...)
			if err != nil {
				return err
			}
			if err := s.client.FillVolumes(ctx, ids...); err != nil {
				return err
			}
			if len(ids) == 1 {
				return s.showVolume(ctx, ids[0])
			}
			return nil
		}),
	}
}

func (a *app) volumeWait() *cobra.Command {
	return &cobra.Command{
		Use: "wait VOLUME", Short: "Wait until a volume needs nothing of the repository", Args: arity(1, 1),
		Long: `Wait until a volume that was made of a snapshot, or rolled back, has fetched all
of its bytes from the repository, and print it. It can be used long before;
from then on it is independent of the repository. Ctrl-C stops the waiting, not
the filling. How fast that is says cairn serve --fill-rate.`,
		Example:           "  cairn snapshot create-volume ss-BTZOND4X --name restored --wait && cairn volume wait restored",
		ValidArgsFunction: a.completeVolumes(1),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			id, err := s.volume(ctx, args[0])
			if err != nil {
				return err
			}
			v, err := s.waitFilled(ctx, id)
			if err != nil {
				return err
			}
			return s.printVolume(v)
		}),
	}
}

// waitFilled shows how much a volume still has to fetch until that is nothing.
func (s *session) waitFilled(ctx context.Context, id string) (client.Volume, error) {
	var m meter
	total := int64(0)
	v, err := s.client.WaitFilled(ctx, id, func(v client.Volume) {
		if m == nil && v.MissingBytes == 0 {
			return // there was nothing to wait for
		}
		if m == nil {
			m = s.newMeter("filling " + id)
		}
		total = max(total, v.MissingBytes) // a rollback meanwhile adds to it
		m.set(total-v.MissingBytes, total)
	})
	if m != nil {
		m.stop(err == nil)
	}
	switch {
	case errors.Is(err, client.ErrOnDemand):
		return v, errs.New(errs.Conflict, "volume %s is read on demand and nobody fills it; to change that: cairn volume fill %s", id, id)
	case err != nil && ctx.Err() != nil:
		return v, &interrupted{hint: fmt.Sprintf("stopped waiting; volume %s is being filled all the same", id)}
	case err != nil && v.ID != "":
		return v, fmt.Errorf("stopped waiting for volume %s: %w", id, err)
	}
	return v, err
}

func missing(v client.Volume) string {
	switch {
	case v.MissingBytes == 0:
		return ""
	case bool(v.OnDemand):
		return formatBytes(v.MissingBytes) + " are in the repository only, and read from there on demand"
	}
	return formatBytes(v.MissingBytes) + " are still in the repository only; the volume is usable"
}

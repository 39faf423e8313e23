package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/client"
)

// completionTimeout bounds how long a press of Tab may hang.
const completionTimeout = 2 * time.Second

// completer is cobra's form of a completion.
type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// candidate is one object that a word on the command line could become.
type candidate struct{ id, name, about string }

// complete asks the server for candidates, for up to high arguments. Without
// a server there are none.
func (a *app) complete(high int, ask func(ctx context.Context, c *client.Client, word string) ([]candidate, error)) completer {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		const none = cobra.ShellCompDirectiveNoFileComp
		c, err := a.connect()
		if err != nil || high != unlimited && len(args) >= high {
			return nil, none
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		found, err := ask(ctx, c, word)
		if err != nil {
			return nil, none
		}
		var words []string
		for _, f := range found {
			if slices.Contains(args, f.id) {
				continue
			}
			if strings.HasPrefix(f.id, word) {
				words = append(words, f.id+"\t"+printable(strings.TrimSpace(f.name+" "+f.about)))
			} else if strings.HasPrefix(f.name, word) {
				words = append(words, f.name+"\t"+f.id+" "+f.about)
			}
		}
		return words, none | cobra.ShellCompDirectiveKeepOrder
	}
}

func (a *app) completeVolumes(high int) completer {
	return a.complete(high, func(ctx context.Context, c *client.Client, word string) ([]candidate, error) {
		p, err := c.Volumes(ctx, client.VolumeFilter{Search: word, Limit: 100})
		var found []candidate
		for _, v := range p.Volumes {
			found = append(found, candidate{v.ID, v.Name, formatBytes(v.SizeBytes)})
		}
		return found, err
	})
}

func (a *app) completeSnapshots(high int) completer {
	return a.complete(high, func(ctx context.Context, c *client.Client, word string) ([]candidate, error) {
		p, err := c.Snapshots(ctx, client.SnapshotFilter{Search: word, Limit: 100})
		var found []candidate
		for _, v := range p.Snapshots {
			found = append(found, candidate{v.ID, v.Name, fmt.Sprintf("%s of %s, %s", kindOf(v), v.Resource.ID, v.SnapshotTime)})
		}
		return found, err
	})
}

func (a *app) completeInstances(high int) completer {
	return a.complete(high, func(ctx context.Context, c *client.Client, word string) ([]candidate, error) {
		p, err := c.Instances(ctx, client.InstanceFilter{Search: word, Limit: 100})
		var found []candidate
		for _, i := range p.Instances {
			found = append(found, candidate{i.ID, i.Name, i.Status})
		}
		return found, err
	})
}

func (a *app) completeImages(high int) completer {
	return a.complete(high, func(ctx context.Context, c *client.Client, word string) ([]candidate, error) {
		p, err := c.Images(ctx, client.ImageFilter{Search: word, Limit: 100})
		var found []candidate
		for _, i := range p.Images {
			found = append(found, candidate{i.ID, i.Name, formatBytes(i.SizeBytes)})
		}
		return found, err
	})
}

// completeResources offers volumes and instances.
func (a *app) completeResources(high int) completer {
	volumes, instances := a.completeVolumes(high), a.completeInstances(high)
	return func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		some, how := volumes(cmd, args, word)
		more, _ := instances(cmd, args, word)
		return append(some, more...), how
	}
}

func (a *app) completeJobs(unfinished bool) completer {
	return a.complete(1, func(ctx context.Context, c *client.Client, _ string) ([]candidate, error) {
		f := client.JobFilter{Limit: 100}
		if unfinished {
			f.Status = []string{client.JobPending, client.JobWorking}
		}
		p, err := c.Jobs(ctx, f)
		var found []candidate
		for _, j := range p.Jobs {
			found = append(found, candidate{j.ID, "", j.Action + ", " + jobState(j)})
		}
		return found, err
	})
}

// completeFlag offers fixed words for a flag.
func completeFlag(cmd *cobra.Command, flag string, words ...string) {
	completeFlagBy(cmd, flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// completeFlagBy registers a completion; only a misspelt flag can fail it,
// which is our bug.
func completeFlagBy(cmd *cobra.Command, flag string, by completer) {
	if err := cmd.RegisterFlagCompletionFunc(flag, by); err != nil {
		panic(err)
	}
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"cairn/client"
	"cairn/internal/errs"
)

func (a *app) jobCommand() *cobra.Command {
	return group("job", "Work of the server: list, show, wait for, cancel",
		a.jobList(), a.jobShow(), a.jobWait(), a.jobCancel())
}

func (a *app) jobList() *cobra.Command {
	var f client.JobFilter
	var resource string
	cmd := &cobra.Command{
		Use: "list", Short: "List jobs, newest first", Args: arity(0, 0),
		Example:           "  cairn job list --status working,failed\n  cairn job list --resource ss-BTZOND4X",
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.run(func(ctx context.Context, s *session, _ []string) error {
			if err := s.checkPage(f.Offset, f.Limit); err != nil {
				return err
			}
			f.ResourceID = resource
			p, err := s.client.AllJobs(ctx, f)
			if err != nil {
				return err
			}
			if s.output == outputJSON {
				return s.printJSON(p)
			}
			rows := make([][]string, len(p.Jobs))
			for i, j := range p.Jobs {
				rows[i] = []string{j.ID, j.Action, jobState(j), j.CreateTime.String(), dash(j.FinishedTime.String()), dash(strings.Join(j.ResourceIDs, ","))}
			}
			defer s.more(f.Offset, len(p.Jobs), p.TotalCount)
			return s.printTable([]string{"job", "action", "status", "created", "finished", "resources"}, rows)
		}),
	}
	fl := cmd.Flags()
	fl.StringSliceVar(&f.Status, "status", nil, "only these `STATES`: pending, working, successful, failed")
	fl.StringVar(&resource, "resource", "", "only jobs that made this snapshot or volume `ID`")
	fl.IntVar(&f.Limit, "limit", 20, "at most `N`; 0 shows all")
	fl.IntVar(&f.Offset, "offset", 0, "leave out the first `N`")
	completeFlag(cmd, "status", client.JobPending, client.JobWorking, client.JobSuccessful, client.JobFailed)
	return cmd
}

// checkPage refuses what the server would, before anything is sent.
func (s *session) checkPage(offset, limit int) error {
	if offset < 0 || limit < 0 {
		return s.usage("--offset and --limit cannot be negative")
	}
	return nil
}

func jobState(j client.Job) string {
	if j.Status == client.JobWorking && j.TotalBytes > 0 {
		return fmt.Sprintf("%s %.0f%%", j.Status, 100*j.Progress)
	}
	return j.Status
}

func (a *app) jobShow() *cobra.Command {
	return &cobra.Command{
		Use: "show JOB", Short: "Show one job", Args: arity(1, 1), ValidArgsFunction: a.completeJobs(false),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			j, err := s.client.Job(ctx, args[0])
			if err != nil {
				return err
			}
			return s.printJob(j)
		}),
	}
}

func (a *app) jobWait() *cobra.Command {
	return &cobra.Command{
		Use: "wait JOB", Short: "Wait until a job has ended, showing its progress", Args: arity(1, 1),
		Long: `Wait until a job has ended, showing its progress on stderr, and print it.
Exits with 0 if it was successful and with 1 if it failed. Ctrl-C stops the
waiting, not the job.`,
		ValidArgsFunction: a.completeJobs(true),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			j, err := s.wait(ctx, args[0], "")
			if err != nil {
				return err
			}
			return errors.Join(s.printJob(j), j.Err())
		}),
	}
}

func (a *app) jobCancel() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use: "cancel JOB", Short: "Stop a job and undo what it had begun", Args: arity(1, 1),
		Long: `Stop a job and undo what it had begun. An apply that has begun to write can
no longer be cancelled. With --wait the command exits with 0 once all is
undone, and with 5 if the job was successful before the cancel reached it.`,
		ValidArgsFunction: a.completeJobs(true),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			j, err := s.client.CancelJob(ctx, args[0])
			if err == nil && wait {
				j, err = s.wait(ctx, j.ID, "")
			}
			if err != nil {
				return err
			}
			err = s.printJob(j)
			if err == nil && wait && j.Status == client.JobSuccessful {
				err = errs.New(errs.Conflict, "job %s was done before the cancel reached it", j.ID)
			}
			return err
		}),
	}
	waitFlag(cmd, &wait)
	return cmd
}

func waitFlag(cmd *cobra.Command, wait *bool) {
	cmd.Flags().BoolVar(wait, "wait", false, "wait for the job's end, showing progress on stderr")
}

// finish ends a command that started a job: it waits if asked to, prints the
// job, and fails if the job did.
func (s *session) finish(ctx context.Context, j client.Job, wait bool) error {
	if wait && !j.Ended() {
		var err error
		if j, err = s.wait(ctx, j.ID, j.Action); err != nil {
			return err
		}
	}
	if err := s.printJob(j); err != nil {
		return err
	}
	if !j.Ended() && s.output == outputTable {
		s.note("to follow it: %s", s.again(j.ID))
	}
	return j.Err()
}

// again is the command line that waits for a job on the same server.
func (s *session) again(job string) string {
	line := "cairn job wait " + job
	if s.server != "" {
		line += " --server " + s.server
	}
	if s.zone != "" {
		line += " --zone " + s.zone
	}
	return line
}

// wait shows a job's progress until it has ended.
func (s *session) wait(ctx context.Context, id, action string) (client.Job, error) {
	m := s.newMeter(firstOf(action, "job "+id))
	j, err := s.client.WaitJob(ctx, id, func(j client.Job) {
		m.set(j.DoneBytes, j.TotalBytes)
		if !j.Ended() {
			m.phase(j.Status)
		}
	})
	m.stop(err == nil && j.Status == client.JobSuccessful)
	switch {
	case err == nil || j.ID == "":
		return j, err
	case ctx.Err() != nil:
		return j, &interrupted{hint: fmt.Sprintf("stopped waiting; job %s goes on. To wait again: %s", id, s.again(id))}
	case errors.Is(err, client.ErrUnreachable):
		return j, fmt.Errorf("stopped waiting for job %s: %w. It goes on once the server is back; to wait again: %s", id, err, s.again(id))
	default:
		return j, err
	}
}

func (s *session) printJob(j client.Job) error {
	if s.output == outputJSON {
		return s.printJSON(j)
	}
	progress := ""
	if j.TotalBytes > 0 {
		progress = fmt.Sprintf("%s of %s (%.0f%%)", formatBytes(j.DoneBytes), formatBytes(j.TotalBytes), 100*j.Progress)
	}
	return s.printPairs([]pair{
		{"job", j.ID},
		{"action", j.Action},
		{"status", j.Status},
		{"resources", strings.Join(j.ResourceIDs, " ")},
		{"progress", progress},
		{"info", j.Info},
		{"created", j.CreateTime.String()},
		{"begun", j.BeginTime.String()},
		{"finished", j.FinishedTime.String()},
	})
}

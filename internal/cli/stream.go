package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"cairn/client"
)

func (a *app) volumeExport() *cobra.Command {
	return a.exportCommand("volume", "VOLUME", "Write a volume's present content to a file", a.completeVolumes(1),
		func(ctx context.Context, s *session, ref string, format client.Format) (string, *client.Export, error) {
			id, err := s.volume(ctx, ref)
			if err != nil {
				return "", nil, err
			}
			e, err := s.client.ExportVolume(ctx, id, format)
			return id, e, err
		})
}

func (a *app) snapshotExport() *cobra.Command {
	cmd := a.exportCommand("snapshot", "SNAPSHOT", "Write a snapshot's content to a file", a.completeSnapshots(1),
		func(ctx context.Context, s *session, ref string, format client.Format) (string, *client.Export, error) {
			id, err := s.snapshot(ctx, ref)
			if err != nil {
				return "", nil, err
			}
			e, err := s.client.ExportSnapshot(ctx, id, format)
			return id, e, err
		})
	a.addSalvage(cmd)
	return cmd
}

type opener = func(ctx context.Context, s *session, ref string, format client.Format) (id string, e *client.Export, err error)

func (a *app) exportCommand(kind, arg, short string, complete completer, open opener) *cobra.Command {
	var format, to string
	var force bool
	cmd := &cobra.Command{
		Use: "export " + arg + " --to FILE", Short: short, Args: arity(1, 1),
		Long: short + `, here, where the command runs. FILE
appears whole or not at all, and zeros become holes in it. With --to - the
content goes to stdout.`,
		Example: fmt.Sprintf("  cairn %s export data --to data.raw\n  cairn %s export data --format qcow2 --to data.qcow2\n  cairn %s export data --to - | ssh other 'dd of=data.raw'", kind, kind, kind),
		RunE: a.run(func(ctx context.Context, s *session, args []string) error {
			return s.export(ctx, kind, args[0], client.Format(format), to, force, open)
		}),
		ValidArgsFunction: complete,
	}
	f := cmd.Flags()
	f.StringVar(&format, "format", string(client.Raw), "`FORMAT` of the file: raw or qcow2")
	f.StringVar(&to, "to", "", "`FILE` to write, or - for stdout")
	f.BoolVar(&force, "force", false, "replace FILE if it exists")
	completeFlag(cmd, "format", string(client.Raw), string(client.Qcow2))
	return cmd
}

// exported is what -o json shows of an export.
type exported struct {
	Snapshot string        `json:"snapshot_id,omitempty"`
	Volume   string        `json:"volume_id,omitempty"`
	Image    string        `json:"image_id,omitempty"`
	Format   client.Format `json:"format"`
	File     string        `json:"file"`
	Bytes    int64         `json:"bytes"`
}

// checkExport refuses what cannot be right before the server begins to work.
func (s *session) checkExport(format client.Format, to string, force bool) error {
	switch {
	case to == "":
		return s.usage("--to FILE is needed; --to - writes to stdout")
	case format != client.Raw && format != client.Qcow2:
		return s.usage("--format is raw or qcow2, not %q", format)
	case to == "-" && s.output == outputJSON:
		return s.usage("-o json and --to - cannot both have stdout")
	case to == "-" && isTerminal(s.Out):
		return s.usage("stdout is a terminal, which cannot hold a volume: use --to FILE or a pipe")
	case to == "-":
		return nil
	}
	return checkDestination(to, force)
}

func (s *session) export(ctx context.Context, kind, ref string, format client.Format, to string, force bool, open opener) error {
	if err := s.checkExport(format, to, force); err != nil {
		return err
	}
	id, stream, err := open(ctx, s, ref, format)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // what was read is judged below
	n, err := s.save(stream, stream.SizeBytes, "export "+id, to, force)
	if err != nil || to == "-" {
		return err
	}
	doc := exported{Format: format, File: to, Bytes: n}
	switch kind {
	case "volume":
		doc.Volume = id
	case "image":
		doc.Image = id
	default:
		doc.Snapshot = id
	}
	if s.output == outputJSON {
		return s.printJSON(doc)
	}
	return s.printPairs([]pair{{kind, id}, {"format", string(format)}, {"file", to}, {"size", exactBytes(n)}})
}

// save writes a stream to a file, or to stdout if to is "-".
func (s *session) save(r io.Reader, size int64, what, to string, force bool) (n int64, err error) {
	m := s.newMeter(what)
	source := &metered{r: r, m: m, total: max(size, 0)}
	if to == "-" {
		n, err = io.CopyBuffer(writerOnly{s.Out}, source, make([]byte, copyBuffer))
	} else {
		n, err = saveSparse(source, to, force)
	}
	m.stop(err == nil)
	return n, err
}

// writerOnly hides ReadFrom, which would ignore the buffer.
type writerOnly struct{ io.Writer }

// metered counts what is read.
type metered struct {
	r     io.Reader
	m     meter
	done  int64
	total int64
}

func (r *metered) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.done += int64(n)
	r.m.set(r.done, r.total)
	return n, err
}

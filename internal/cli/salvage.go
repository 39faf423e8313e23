package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"cairn/client"
	"cairn/internal/errs"
)

// addSalvage gives the export command of snapshots its way to save what is
// left of a damaged one.
func (a *app) addSalvage(cmd *cobra.Command) {
	var salvage bool
	var list string
	cmd.Long += `

With --salvage what is left of a damaged snapshot is written, raw. Zeros stand
for what could not be read; the list of those ranges goes to stderr, to the
JSON document with -o json, or as JSON to the file that --bad-ranges names. The
exit code is 3 if there are any.`
	cmd.Example += "\n  cairn snapshot export data --salvage --to data.raw --bad-ranges data.bad.json"
	f := cmd.Flags()
	f.BoolVar(&salvage, "salvage", false, "write what is left of a damaged snapshot")
	f.StringVar(&list, "bad-ranges", "", "`FILE` for the list of what --salvage could not read")
	whole := cmd.RunE
	save := a.run(func(ctx context.Context, s *session, args []string) error {
		o := salvageOptions{list: list}
		var err error
		if o.to, err = f.GetString("to"); err != nil {
			return err
		}
		if o.force, err = f.GetBool("force"); err != nil {
			return err
		}
		if format, err := f.GetString("format"); err != nil || format != string(client.Raw) {
			return s.usage("a salvage is raw; leave --format out")
		}
		return s.salvage(ctx, args[0], o)
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case salvage:
			return save(cmd, args)
		case list != "":
			return usage(cmd, "--bad-ranges goes with --salvage: only a salvage reads past damage")
		}
		return whole(cmd, args)
	}
}

type salvageOptions struct {
	to, list string
	force    bool
}

// salvaged is what -o json shows of a salvage.
type salvaged struct {
	exported
	BadBytes  int64             `json:"bad_bytes"`
	Joined    bool              `json:"joined"`
	BadRanges []client.BadRange `json:"bad_ranges"`
}

func (s *session) salvage(ctx context.Context, ref string, o salvageOptions) error {
	if err := s.checkExport(client.Raw, o.to, o.force); err != nil {
		return err
	}
	if o.list != "" {
		if err := checkDestination(o.list, o.force); err != nil {
			return err
		}
	}
	id, err := s.snapshot(ctx, ref)
	if err != nil {
		return err
	}
	stream, err := s.client.SalvageSnapshot(ctx, id)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // what was read is judged below
	n, err := s.save(stream, stream.SizeBytes, "salvage "+id, o.to, o.force)
	if err != nil {
		return err
	}
	report := stream.Report()
	if report.BadRanges == nil {
		report.BadRanges = []client.BadRange{}
	}
	if err := s.listBad(report, o); err != nil {
		return err
	}
	if err := s.printSalvage(report, o, n); err != nil {
		return err
	}
	if report.BadBytes > 0 {
		return errs.New(errs.Corrupt, "%d of %d bytes of %s could not be read, in %d ranges; zeros stand for them", report.BadBytes, report.SizeBytes, id, len(report.BadRanges))
	}
	return nil
}

func (s *session) printSalvage(r client.SalvageReport, o salvageOptions, n int64) error {
	switch {
	case o.to == "-":
		return nil
	case s.output == outputJSON:
		return s.printJSON(salvaged{
			exported: exported{Snapshot: r.Snapshot, Format: client.Raw, File: o.to, Bytes: n},
			BadBytes: r.BadBytes, Joined: r.Joined, BadRanges: r.BadRanges,
		})
	}
	return s.printPairs([]pair{
		{"snapshot", r.Snapshot}, {"format", string(client.Raw)}, {"file", o.to}, {"size", exactBytes(n)}, {"lost", exactBytes(r.BadBytes)},
	})
}

// listBad writes the list where it was asked for: a file, or stderr, unless
// the document on stdout has it. If the file cannot be written stderr has it
// after all, since reading everything again may take hours.
func (s *session) listBad(r client.SalvageReport, o salvageOptions) error {
	var failed error
	if o.list != "" {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetIndent("", "  ")
		failed = e.Encode(r)
		if failed == nil {
			_, failed = saveSparse(&b, o.list, o.force)
		}
		if failed == nil {
			return nil
		}
		failed = fmt.Errorf("write the list of what could not be read to %s: %w", o.list, failed)
	}
	if s.output == outputJSON && o.to != "-" && failed == nil {
		return nil
	}
	for _, b := range r.BadRanges {
		s.note("%d+%d %s", b.Offset, b.Length, b.Cause)
	}
	if r.Joined {
		s.note("some of these ranges were joined over good bytes, since there were so many")
	}
	return failed
}

// Package cli is the command line: cobra commands over the public Go client.
//
// Invariants:
//   - stdout holds the answer and nothing else: a table, or with -o json
//     exactly one JSON document; progress, hints and questions go to stderr;
//   - an error is one sentence on stderr and an exit code of the table in
//     exit.go; stdout then stays empty, except that a job that failed and
//     what a salvage saved are still shown;
//   - a file that a command writes appears whole or not at all;
//   - nothing asks a question unless stdin is a terminal.
//
// A command tree serves one execution. The server's own command is added by
// package main, which alone may know the server.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"cairn/client"
	"cairn/internal/errs"
)

// Config is what the surroundings give. Zero values mean those of the process.
type Config struct {
	Version string
	Commit  string // of the source; may be empty

	In     io.Reader
	Out    io.Writer
	Err    io.Writer
	Getenv func(string) string
}

// app is what all commands of one tree share.
type app struct {
	Config
	server string // flags
	zone   string
	output outputFormat
}

// New makes the command tree. Add further commands to it, then hand it to
// Execute.
func New(cfg Config) *cobra.Command {
	if cfg.In == nil {
		cfg.In = os.Stdin
	}
	if cfg.Out == nil {
		cfg.Out = os.Stdout
	}
	if cfg.Err == nil {
		cfg.Err = os.Stderr
	}
	if cfg.Getenv == nil {
		cfg.Getenv = os.Getenv
	}
	if cfg.Version == "" {
		cfg.Version = "unknown"
	}
	a := &app{Config: cfg, output: outputTable}
	root := group("cairn", "Snapshots of block volumes: take, roll back, clone, export, check",
		a.volumeCommand(), a.instanceCommand(), a.imageCommand(), a.snapshotCommand(), a.jobCommand(), a.scrubCommand(), a.repoCommand(), a.versionCommand(), exitCodesTopic())
	root.Long = `Cairn takes full and incremental points of block volumes, keeps them
deduplicated, compressed and encrypted, and rolls back, clones or exports
any of them at once.

Commands talk to a server (cairn serve). Volumes and snapshots may be named
by id or, where only one has it, by name.`
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetIn(cfg.In)
	root.SetOut(cfg.Out)
	root.SetErr(cfg.Err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		// A mistyped command comes before its flags, which then are unknown too.
		if rest := cmd.Flags().Args(); cmd.HasSubCommands() && len(rest) > 0 {
			return unknownCommand(cmd, rest[0])
		}
		return usage(cmd, "%s", err)
	})
	pf := root.PersistentFlags()
	pf.StringVar(&a.server, "server", "", "server `ADDRESS`, http://HOST:PORT or unix://PATH (default $CAIRN_SERVER, else "+client.DefaultServer+")")
	pf.StringVar(&a.zone, "zone", "", "`ZONE` to work in (default $CAIRN_ZONE, else "+client.DefaultZone+")")
	pf.VarP(&a.output, "output", "o", "output `FORMAT`: table or json")
	completeFlag(root, "output", string(outputTable), string(outputJSON))
	return root
}

// Execute runs the command that args name and returns the process's exit
// code. Whoever calls it ends ctx on SIGINT and SIGTERM.
func Execute(ctx context.Context, root *cobra.Command, args []string) int {
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	var stopped *interrupted
	if ctx.Err() != nil && !errors.As(err, &stopped) && (errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(ctx))) {
		err = &interrupted{}
	}
	root.PrintErrln("cairn: " + sentence(err))
	return exitCode(err)
}

// group is a command that only holds others.
func group(name, short string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   name,
		Short: short,
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args[0])
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.AddCommand(children...)
	return cmd
}

func unknownCommand(cmd *cobra.Command, name string) error {
	msg := fmt.Sprintf("there is no command %q", cmd.CommandPath()+" "+name)
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		msg += fmt.Sprintf("; did you mean %s?", strings.Join(near, " or "))
	}
	return usage(cmd, "%s", msg)
}

// usage is an error of the command line itself.
func usage(cmd *cobra.Command, format string, args ...any) error {
	return errs.New(errs.Invalid, "%s (see %s --help)", fmt.Sprintf(format, args...), cmd.CommandPath())
}

// session is one execution of a command that talks to the server.
type session struct {
	*app
	cmd    *cobra.Command
	client *client.Client
}

// connect makes the client that the flags and the environment ask for.
func (a *app) connect() (*client.Client, error) {
	c, err := client.New(
		firstOf(a.server, a.Getenv("CAIRN_SERVER"), client.DefaultServer),
		client.WithZone(firstOf(a.zone, a.Getenv("CAIRN_ZONE"), client.DefaultZone)),
	)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s", err)
	}
	return c, nil
}

// run makes do the body of a command.
func (a *app) run(do func(ctx context.Context, s *session, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.Close()
		return do(cmd.Context(), &session{app: a, cmd: cmd, client: c}, args)
	}
}

// usage is an error of the command line of this execution.
func (s *session) usage(format string, args ...any) error { return usage(s.cmd, format, args...) }

// note writes a line for people to stderr.
func (s *session) note(format string, args ...any) { fmt.Fprintf(s.Err, format+"\n", args...) }

// arity checks the number of arguments, naming them for the user.
func arity(low, high int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < low:
			// "create VOLUME... --name NAME": the arguments stand before the flags.
			_, names, _ := strings.Cut(cmd.Use, " ")
			names, _, _ = strings.Cut(names, " --")
			return usage(cmd, "%s is missing", names)
		case high >= 0 && len(args) > high:
			return usage(cmd, "%q is one argument too many", args[high])
		}
		return nil
	}
}

const unlimited = -1

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of this program",
		Args: arity(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			if a.output == outputJSON {
				return a.printJSON(struct {
					Version string `json:"version"`
					Commit  string `json:"commit"`
				}{a.Version, a.Commit})
			}
			line := "cairn " + a.Version
			if a.Commit != "" {
				line += " (" + a.Commit + ")"
			}
			_, err := fmt.Fprintln(a.Out, line)
			return err
		},
	}
}

// outputFormat is the value of -o.
type outputFormat string

const (
	outputTable outputFormat = "table"
	outputJSON  outputFormat = "json"
)

// String, Set and Type make it a flag.
func (o *outputFormat) String() string { return string(*o) }

// Set refuses what is no format.
func (o *outputFormat) Set(s string) error {
	switch f := outputFormat(s); f {
	case outputTable, outputJSON:
		*o = f
		return nil
	}
	return fmt.Errorf("it is table or json")
}

// Type names the value in help texts.
func (o *outputFormat) Type() string { return "FORMAT" }

// printJSON writes the one document of this execution.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.Out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

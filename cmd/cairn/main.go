// Command cairn is the server and its command line: one binary. This package
// is the wiring; it alone names drivers.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"cairn/internal/cli"
)

// version is set by the linker.
var version = "dev"

func main() {
	os.Exit(execute())
}

func execute() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the process at once, whatever it is stuck in.
	context.AfterFunc(ctx, stop)
	root := cli.New(cli.Config{Version: version})
	root.AddCommand(newServeCommand())
	root.AddCommand(newDebugCommand())
	root.AddCommand(newKeyCommand())
	addRepoCommands(root)
	return cli.Execute(ctx, root, os.Args[1:])
}

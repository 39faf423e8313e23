package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func yesFlag(cmd *cobra.Command, yes *bool) {
	cmd.Flags().BoolVarP(yes, "yes", "y", false, "do not ask, also not on a terminal")
}

// confirm asks on stderr before something that cannot be taken back. It asks
// only where somebody can answer: scripts have decided already.
func (s *session) confirm(ctx context.Context, yes bool, format string, args ...any) error {
	if yes || !isTerminal(s.In) {
		return nil
	}
	fmt.Fprintf(s.Err, format+" [y/N] ", args...)
	// A read of a terminal cannot be ended from outside; after Ctrl-C the
	// goroutine ends with the process.
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(s.In).ReadString('\n')
		answer <- line
	}()
	select {
	case <-ctx.Done():
		s.note("")
		return context.Cause(ctx)
	case line := <-answer:
		switch strings.ToLower(strings.TrimSpace(line)) {
		case "y", "yes":
			return nil
		}
		return errors.New("stopped: nothing was changed")
	}
}

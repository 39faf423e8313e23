package cli

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"cairn/client"
	"cairn/internal/errs"
)

// Exit codes. exitMeanings says what each means, to people too.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitDamage      = 3
	exitNotFound    = 4
	exitConflict    = 5
	exitUnreachable = 6
	exitInterrupted = 130 // 128 + SIGINT, as shells have it
)

var exitMeanings = []struct {
	code    int
	meaning string
}{
	{exitOK, "done"},
	{exitFailed, "the job failed, or any other error"},
	{exitUsage, "the command or its arguments cannot be right, or the server says so"},
	{exitDamage, "stored bytes are damaged: a scrub, a salvage, cairn debug or an import found it"},
	{exitNotFound, "a volume, snapshot, job or zone does not exist"},
	{exitConflict, "the object's state forbids it, it is busy, or the name is taken: look, or try later"},
	{exitUnreachable, "the server cannot be reached"},
	{exitInterrupted, "interrupted (Ctrl-C); a job that was waited for goes on"},
}

// exitCode is the one place that turns errors into exit codes.
func exitCode(err error) int {
	var answer *client.Error
	var stopped *interrupted
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &stopped):
		return exitInterrupted
	case errors.Is(err, client.ErrUnreachable):
		return exitUnreachable
	case errors.As(err, &answer):
		return exitCodeOfStatus(answer.Status)
	}
	switch errs.KindOf(err) {
	case errs.Invalid, errs.TooLarge:
		return exitUsage
	case errs.Corrupt:
		return exitDamage
	case errs.NotFound:
		return exitNotFound
	case errs.Exists, errs.Conflict, errs.Busy, errs.Depends:
		return exitConflict
	default:
		return exitFailed
	}
}

func exitCodeOfStatus(status int) int {
	switch status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		return exitUsage
	case http.StatusNotFound:
		return exitNotFound
	case http.StatusConflict, http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return exitConflict
	default:
		return exitFailed
	}
}

// sentence is what the user reads of an error.
func sentence(err error) string {
	var answer *client.Error
	if !errors.As(err, &answer) {
		return err.Error()
	}
	s := answer.Sentence()
	// Our own 5xx are looked up in the log; a proxy's page says what it is.
	if answer.Status >= http.StatusInternalServerError && answer.RequestID != "" {
		s += fmt.Sprintf(" (request %s)", answer.RequestID)
	}
	return s
}

// interrupted is the end of a command by Ctrl-C.
type interrupted struct {
	hint string // what goes on and how to come back to it; may be empty
}

func (i *interrupted) Error() string { return firstOf(i.hint, "interrupted") }

// exitCodesTopic is a help topic: a command without anything to run.
func exitCodesTopic() *cobra.Command {
	var b strings.Builder
	b.WriteString("Every command ends with one of these exit codes:\n\n")
	for _, m := range exitMeanings {
		fmt.Fprintf(&b, "  %3d  %s\n", m.code, m.meaning)
	}
	b.WriteString("\nOn an error stdout stays empty and stderr has one sentence; only a job that\nfailed, and what a salvage or cairn debug found, is still printed.")
	return &cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: b.String()}
}

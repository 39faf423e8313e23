package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"cairn/internal/errs"
	"cairn/internal/repo"
)

// terminal asks the person at the keyboard. Questions go to stderr.
type terminal struct {
	in  *os.File
	out io.Writer
}

// terminalOf is the command's terminal, if its stdin is one.
func terminalOf(cmd *cobra.Command) (t terminal, ok bool) {
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return t, false
	}
	return terminal{in: in, out: cmd.ErrOrStderr()}, true
}

// ask waits for read, or for the end of ctx. A read of a terminal cannot be
// ended from outside; after Ctrl-C its goroutine ends with the process, and
// the terminal is put back as it was.
func (t terminal) ask(ctx context.Context, question string, read func() (string, error)) (string, error) {
	state, err := term.GetState(int(t.in.Fd()))
	if err != nil {
		return "", fmt.Errorf("ask the terminal: %w", err)
	}
	fmt.Fprint(t.out, question)
	type reply struct {
		text string
		err  error
	}
	replies := make(chan reply, 1)
	go func() {
		text, err := read()
		replies <- reply{text, err}
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(t.out)
		return "", errors.Join(context.Cause(ctx), term.Restore(int(t.in.Fd()), state))
	case r := <-replies:
		if r.err != nil {
			return "", errs.Wrap(errs.Invalid, r.err, "nothing was entered")
		}
		return r.text, nil
	}
}

// line asks for one line, which is shown.
func (t terminal) line(ctx context.Context, question string) (string, error) {
	return t.ask(ctx, question, func() (string, error) {
		s, err := bufio.NewReader(t.in).ReadString('\n')
		return strings.TrimRight(s, "\r\n"), err
	})
}

// secret asks for one line, which is not shown.
func (t terminal) secret(ctx context.Context, question string) (string, error) {
	return t.ask(ctx, question, func() (string, error) {
		b, err := term.ReadPassword(int(t.in.Fd()))
		fmt.Fprintln(t.out)
		return string(b), err
	})
}

// confirm asks before something that cannot be taken back.
func (t terminal) confirm(ctx context.Context, question string) error {
	s, err := t.line(ctx, question+" [y/N] ")
	if err != nil {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "y", "yes":
		return nil
	}
	return errors.New("stopped: nothing was changed")
}

// key asks for the passphrase, or the recovery key.
func (t terminal) key(ctx context.Context) (repo.Opener, error) {
	s, err := t.secret(ctx, "Passphrase (it is not shown; only Enter: type the recovery key instead): ")
	if err != nil {
		return nil, err
	}
	if s == "" {
		return t.recoveryKey(ctx)
	}
	return repo.ParsePassphrase(s)
}

// recoveryKey asks for the groups of a recovery key, and again for one with a
// typing error.
func (t terminal) recoveryKey(ctx context.Context) (repo.Opener, error) {
	var groups []string
	for len(groups) < repo.RecoveryGroups {
		n := len(groups) + 1
		s, err := t.line(ctx, fmt.Sprintf("Recovery key, group %d of %d (or several): ", n, repo.RecoveryGroups))
		if err != nil {
			return nil, err
		}
		good, ok := repo.TakeRecoveryGroups(n, s)
		groups = append(groups, good...)
		if !ok {
			fmt.Fprintf(t.out, "Group %d has a typing error; type it again, and what follows.\n", len(groups)+1)
		}
	}
	return repo.ParseRecoveryKey(strings.Join(groups, " "))
}

// newPassphrase asks for a new passphrase, twice.
func (t terminal) newPassphrase(ctx context.Context) (repo.Passphrase, error) {
	var none repo.Passphrase
	s, err := t.secret(ctx, "New passphrase (it is not shown): ")
	if err != nil {
		return none, err
	}
	p, err := repo.ParsePassphrase(s)
	if err == nil {
		err = p.CheckNew()
	}
	if err != nil {
		return none, err
	}
	again, err := t.secret(ctx, "The same again: ")
	if err != nil {
		return none, err
	}
	if again != s {
		return none, errs.New(errs.Invalid, "the two passphrases differ; nothing was changed")
	}
	return p, nil
}

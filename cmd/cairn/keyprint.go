package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/internal/repo"
)

// keyReport says what a key command changed.
type keyReport struct {
	Repository  string     `json:"repository"`
	Generation  uint64     `json:"generation"`
	Added       []shownKey `json:"added,omitempty"`
	Removed     []shownKey `json:"removed,omitempty"`
	KeyFile     string     `json:"key_file,omitempty"`     // with the new key
	RecoveryKey string     `json:"recovery_key,omitempty"` // a secret

	added, removed []repo.KeySlot
}

// keyList is the answer of key list.
type keyList struct {
	Repository string     `json:"repository"`
	Generation uint64     `json:"generation"`
	Proved     bool       `json:"proved"` // a key opened the repository
	Slots      []shownKey `json:"slots"`
}

// shownKey is a key slot as it is shown.
type shownKey struct {
	ID     string      `json:"id"`
	Kind   string      `json:"kind"`
	Added  *time.Time  `json:"added"` // null: not recorded
	Usable bool        `json:"usable"`
	Opened bool        `json:"opened"` // by the key of this command
	Argon2 *argon2Cost `json:"argon2id,omitempty"`
}

type argon2Cost struct {
	Passes    uint32 `json:"passes"`
	MemoryKiB uint32 `json:"memory_kib"`
	Lanes     uint32 `json:"lanes"`
}

func short(id repo.KeySlotID) string { return id.String()[:shownID] }

func showKeys(slots []repo.KeySlot, opened repo.KeySlotID) (out []shownKey) {
	for _, s := range slots {
		k := shownKey{
			ID: s.ID.String(), Kind: strings.ReplaceAll(s.Kind.String(), " ", "_"), Usable: s.Usable,
			Opened: s.ID == opened && opened != repo.KeySlotID{},
		}
		if !s.Added.IsZero() {
			k.Added = &s.Added
		}
		if s.Kind == repo.PassphraseSlot {
			k.Argon2 = &argon2Cost{s.Cost.Passes, s.Cost.MemoryKiB, s.Cost.Lanes}
		}
		out = append(out, k)
	}
	return out
}

func printKeyList(cmd *cobra.Command, l repo.KeySlotList, opened repo.KeySlotID, proved bool) error {
	if wantsJSON(cmd) {
		return printJSON(cmd.OutOrStdout(), keyList{
			Repository: l.Repo.String(), Generation: l.Generation, Proved: proved, Slots: showKeys(l.Slots, opened),
		})
	}
	rows := [][]string{{"SLOT", "KIND", "ADDED", "NOTE"}}
	for _, s := range l.Slots {
		rows = append(rows, []string{short(s.ID), s.Kind.String(), added(s), slotNote(s, proved && s.ID == opened)})
	}
	return printColumns(cmd.OutOrStdout(), rows)
}

func added(s repo.KeySlot) string {
	if s.Added.IsZero() {
		return "-"
	}
	return s.Added.Format(time.RFC3339)
}

func slotNote(s repo.KeySlot, opened bool) string {
	var notes []string
	if opened {
		notes = append(notes, "opened by your key")
	}
	if s.Kind == repo.PassphraseSlot {
		notes = append(notes, fmt.Sprintf("Argon2id %d MiB, %d passes", s.Cost.MemoryKiB>>10, s.Cost.Passes))
	}
	if !s.Usable {
		notes = append(notes, "this version cannot open it")
	}
	if len(notes) == 0 {
		return "-"
	}
	return strings.Join(notes, "; ")
}

// print tells what was changed.
func (w keyWork) print(r keyReport) error {
	out := w.cmd.OutOrStdout()
	l := w.slots.List()
	if wantsJSON(w.cmd) {
		r.Repository, r.Generation = l.Repo.String(), l.Generation
		r.Added, r.Removed = showKeys(r.added, repo.KeySlotID{}), showKeys(r.removed, repo.KeySlotID{})
		return printJSON(out, r)
	}
	for _, s := range r.added {
		where := ""
		if r.KeyFile != "" {
			where = ": " + r.KeyFile
		}
		if _, err := fmt.Fprintf(out, "added key slot %s (%s)%s\n", short(s.ID), s.Kind, where); err != nil {
			return err
		}
	}
	for _, s := range r.removed {
		if _, err := fmt.Fprintf(out, "removed key slot %s (%s)\n", short(s.ID), s.Kind); err != nil {
			return err
		}
	}
	if r.RecoveryKey == "" {
		return nil
	}
	_, err := io.WriteString(out, "\n"+r.RecoveryKey)
	return err
}

package service

import (
	"encoding/json"
	"slices"

	"cairn/internal/errs"
)

// idList is a setting that holds ids.
type idList string

const (
	// forgottenMachines are foreign ones that were deleted here: they get no rows
	// again before they were gone.
	forgottenMachines idList = "forgotten_machines"
	// owedMachines are those that applies have stopped and could not start again:
	// the next apply to one of their volumes starts them, unless somebody has
	// started or stopped them since.
	owedMachines idList = "owed_machines"
)

func (l idList) read(tx Tx) (ids []string, err error) {
	text, err := tx.Setting(string(l))
	if err != nil || text == "" {
		return nil, err
	}
	if err := json.Unmarshal([]byte(text), &ids); err != nil {
		return nil, errs.Wrap(errs.Corrupt, err, "the setting %s of the database is no list; put the database back from a copy, or run recover", string(l))
	}
	return ids, nil
}

// add notes ids; those that are there already once.
func (l idList) add(tx Tx, ids []string) error {
	have, err := l.read(tx)
	if err != nil {
		return err
	}
	n := len(have)
	for _, id := range ids {
		if !slices.Contains(have, id) {
			have = append(have, id)
		}
	}
	return l.write(tx, have, n)
}

// remove forgets the ids that are over.
func (l idList) remove(tx Tx, over func(id string) bool) error {
	have, err := l.read(tx)
	if err != nil {
		return err
	}
	n := len(have)
	return l.write(tx, slices.DeleteFunc(have, over), n)
}

// write stores ids unless they are as many as there were.
func (l idList) write(tx Tx, ids []string, were int) error {
	if len(ids) == were {
		return nil
	}
	text, err := json.Marshal(ids)
	if err != nil {
		return err
	}
	return tx.SetSetting(string(l), string(text))
}

// oneOf is for remove.
func oneOf(ids []string) func(id string) bool {
	return func(id string) bool { return slices.Contains(ids, id) }
}

package cli_test

import (
	"github.com/spf13/cobra"

	"cairn/internal/errs"
)

// failing stands for a command that package main adds.
func failing() *cobra.Command {
	return &cobra.Command{Use: "serve", RunE: func(*cobra.Command, []string) error {
		return errs.New(errs.Conflict, "the address is taken")
	}}
}

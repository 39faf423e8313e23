package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"cairn/internal/repo"
)

func newRebuildIndexCommand() *cobra.Command {
	var access keyAccess
	cmd := &cobra.Command{
		Use:   "rebuild-index --data-dir DIR",
		Short: "Make the dedup index anew from the packs",
		Long: `Make the dedup index anew from the directories of all packs, with the server
stopped.

The index only saves space: without it nothing is lost, but chunks that are
stored already are stored again. It is never needed to read. Rebuild it after
DIR/index was lost, or when the server said that part of it was damaged.`,
		Example: `  cairn repo rebuild-index --data-dir /var/lib/cairn`,
		Args:    arity(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			folder, err := openOffline(access.dataDir)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, folder.Close()) }()
			key, _, err := access.key(cmd, folder, true)
			if err != nil {
				return err
			}
			r, err := repo.Open(cmd.Context(), folder.store, key, filepath.Join(folder.dir, "index"))
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, r.Close()) }()
			got, err := r.RebuildIndex(cmd.Context())
			if err != nil {
				return err
			}
			if wantsJSON(cmd) {
				return printJSON(cmd.OutOrStdout(), got)
			}
			for _, why := range got.Skipped {
				fmt.Fprintln(cmd.ErrOrStderr(), "left out:", why)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "indexed %d chunks in %d packs\n", got.Chunks, got.Packs)
			return err
		},
	}
	access.addFlags(cmd)
	return cmd
}

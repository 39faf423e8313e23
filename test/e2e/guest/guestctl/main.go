// guestctl makes a disk with a small guest and runs commands in one that was
// started from it:
//
//	guestctl disk FILE
//	guestctl run SOCKET COMMAND
//
// SOCKET is the guest's serial port. run prints what the command printed and
// ends with its exit code.
package main

import (
	"fmt"
	"os"
	"time"

	"cairn/test/e2e/guest"
)

const bootLimit = 2 * time.Minute

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "guestctl:", err)
		code = 1
	}
	os.Exit(code)
}

func run(args []string) (code int, err error) {
	switch {
	case len(args) == 2 && args[0] == "disk":
		return 0, guest.WriteDisk(args[1], guest.DiskConfig())
	case len(args) == 3 && args[0] == "run":
		r, err := guest.Dial(args[1], bootLimit)
		if err != nil {
			return 0, err
		}
		defer r.Close()
		out, code, err := r.Run(args[2])
		fmt.Print(out)
		return code, err
	}
	return 2, fmt.Errorf("usage: guestctl disk FILE | guestctl run SOCKET COMMAND")
}

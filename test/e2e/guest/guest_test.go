package guest

import (
	"fmt"
	"strings"
	"testing"
)

// TestGuest tries the rig itself: what commands print and end with comes back
// as it is, however long, and a command may leave another one running.
func TestGuest(t *testing.T) {
	t.Parallel()
	g := Start(t, Config{Network: true})
	if out, code := g.Run(t, "echo out; echo err >&2; exit 7"); out != "out\nerr\n" || code != 7 {
		t.Errorf("output %q and code %d", out, code)
	}
	if out := g.Must(t, "printf 'a\\000\\001\\r\\n\\377b'"); out != "a\x00\x01\r\n\xffb" {
		t.Errorf("bytes came as %q", out)
	}
	long := strings.Repeat("0123456789abcdef", 3000)
	if out := g.Must(t, "cat <<'END'\n"+long+"\nEND"); out != long {
		t.Errorf("a command of %d bytes printed %d bytes", len(long), len(out))
	}
	var numbers strings.Builder
	for i := range 20_000 {
		fmt.Fprintln(&numbers, i)
	}
	if out, _ := g.Run(t, "seq 0 19999"); out != numbers.String() {
		t.Errorf("seq printed %d bytes, want %d", len(out), numbers.Len())
	}
	g.Must(t, "(while [ ! -e /run/go ]; do sleep 0.1; done; echo went >/run/went) &")
	g.Must(t, "touch /run/go; while [ ! -s /run/went ]; do sleep 0.1; done")
	if out := g.Must(t, "ls /sys/class/net"); !strings.Contains(out, "eth0") {
		t.Errorf("network cards: %q", out)
	}
	g.Stop(t)
	select {
	case <-g.gone:
	default:
		t.Error("QEMU has not ended")
	}
}

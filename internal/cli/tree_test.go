package cli

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"cairn/client"
)

func TestDrawTree(t *testing.T) {
	begin := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	var points []client.Snapshot
	add := func(id, parent, name string) *client.Snapshot {
		p := client.Snapshot{
			ID: id, Name: name, ParentID: parent, Type: client.Incremental, Status: "available", SizeBytes: 1536,
			SnapshotTime: client.Time{Time: begin.Add(time.Duration(len(points)) * time.Hour)},
		}
		if parent == client.ParentSelf {
			p.Type = client.Full
		}
		points = append([]client.Snapshot{p}, points...) // newest first, as lists are
		return &points[0]
	}
	add("ss-A", client.ParentSelf, "mon")
	add("ss-B", "ss-A", "tue")
	add("ss-C", "ss-B", "wed")
	add("ss-D", "ss-B", "after apply")
	add("ss-E", "ss-D", "").IsHead = true
	add("ss-F", "ss-B", "again").Status = "suspended"
	add("ss-G", client.ParentSelf, "alone").Damaged = true
	add("ss-H", "ss-GONE", "orphan").SnapshotTime = client.Time{}
	want := `
● ss-H  incremental  not yet taken           1.5 KiB  orphan

● ss-A    full         2026-11-23T08:00:00Z    1.5 KiB  mon
● ss-B    incremental  2026-11-23T09:00:00Z    1.5 KiB  tue
├─● ss-C  incremental  2026-11-23T10:00:00Z    1.5 KiB  wed
├─● ss-D  incremental  2026-11-23T11:00:00Z    1.5 KiB  after apply
│ ● ss-E  incremental  2026-11-23T12:00:00Z    1.5 KiB               ◀ head
└─● ss-F  incremental  2026-11-23T13:00:00Z    1.5 KiB  again        suspended

● ss-G  full         2026-11-23T14:00:00Z    1.5 KiB  alone  available,damaged
`
	var got strings.Builder
	for line := range strings.Lines(drawTree(points)) {
		fmt.Fprintln(&got, strings.TrimRight(line, " \n"))
	}
	if got.String() != want[1:] {
		t.Errorf("got\n%swant%s", got.String(), want)
	}
}

// A chain may be as long as a server allows: it must stay narrow.
func TestDrawLongChain(t *testing.T) {
	points := []client.Snapshot{{ID: "ss-0", ParentID: client.ParentSelf, Type: client.Full}}
	for i := 1; i < 1000; i++ {
		points = append(points, client.Snapshot{ID: fmt.Sprintf("ss-%d", i), ParentID: fmt.Sprintf("ss-%d", i-1)})
	}
	for line := range strings.Lines(drawTree(points)) {
		if runes(line) > 80 {
			t.Fatalf("%d columns: %s", runes(line), line)
		}
	}
}

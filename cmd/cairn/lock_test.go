package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/internal/errs"
)

func TestOneProcessForOneFolder(t *testing.T) {
	dir := t.TempDir()
	lock, err := lockFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockFolder(dir); !errs.Is(err, errs.Busy) || !strings.Contains(err.Error(), lock.me.String()) {
		t.Errorf("a second process: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := readOwner(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a clean stop leaves a record: %v", err)
	}
	again, err := lockFolder(dir)
	if err != nil {
		t.Fatalf("after the first one's end: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if names, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(names) != 1 {
		t.Errorf("left in the folder: %v, %v", names, err)
	}
}

var host = owner{Host: "one", Machine: "m1", Boot: "b1", PID: 7, Since: time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)}

// leave makes the folder what a process of o left when it died: its record,
// and no flock.
func leave(t *testing.T, dir string, o owner) {
	t.Helper()
	l, err := lockFolderAs(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.file.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestDeadProcessAndOtherHost(t *testing.T) {
	for name, tt := range map[string]struct {
		left owner
		free bool
	}{
		"the same boot":                       {host, true},
		"the same boot, a container's name":   {owner{Host: "two", Boot: "b1", PID: 8, Since: host.Since}, true},
		"the same host before a reboot":       {owner{Host: "one", Machine: "m1", Boot: "b0", PID: 8, Since: host.Since}, true},
		"another host":                        {owner{Host: "two", Machine: "m2", Boot: "b2", PID: 7, Since: host.Since}, false},
		"a cloned machine id":                 {owner{Host: "two", Machine: "m1", Boot: "b2", PID: 7, Since: host.Since}, false},
		"the same name, another machine":      {owner{Host: "one", Machine: "m2", Boot: "b2", PID: 7, Since: host.Since}, false},
		"the same name, no machine id":        {owner{Host: "one", Boot: "b2", PID: 7, Since: host.Since}, false},
		"another host, ages ago":              {owner{Host: "two", Machine: "m2", Boot: "b2", PID: 7, Since: time.Unix(1, 0).UTC()}, false},
		"another host, in the future somehow": {owner{Host: "two", Machine: "m2", Boot: "b2", PID: 7, Since: time.Date(2500, 1, 1, 0, 0, 0, 0, time.UTC)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			leave(t, dir, tt.left)
			l, err := lockFolderAs(dir, host)
			if !tt.free {
				if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), tt.left.Host) ||
					!strings.Contains(err.Error(), tt.left.Since.Format(time.RFC3339)) || !strings.Contains(err.Error(), "cairn repo unlock") {
					t.Fatalf("got %v", err)
				}
				if o, err := readOwner(dir); err != nil || o != tt.left {
					t.Errorf("the record is %v, %v", o, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if o, err := readOwner(dir); err != nil || o != host {
				t.Errorf("the record is %v, %v", o, err)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Hosts without a common flock start at one moment: one gets the folder.
func TestHostsAtOnce(t *testing.T) {
	for range 50 {
		dir := t.TempDir()
		var mu sync.Mutex
		var got []string
		var wg sync.WaitGroup
		for _, name := range []string{"one", "two", "three", "four"} {
			wg.Go(func() {
				l := &folderLock{dir: dir, me: owner{Host: name, Boot: name}} // its flock reaches nobody
				if err := l.claim(); err == nil {
					mu.Lock()
					defer mu.Unlock()
					got = append(got, name)
				} else if !errs.Is(err, errs.Conflict) && !errs.Is(err, errs.Busy) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		o, err := readOwner(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != 1 || got[0] != o.Host {
			t.Fatalf("%v got the folder, and %s stands in it", got, o.Host)
		}
	}
}

func TestUnreadableRecord(t *testing.T) {
	for _, text := range []string{"", "{", "{}", "null", `{"host":"x"}`} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, ownerName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := lockFolderAs(dir, host); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "cairn repo unlock") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// Whoever was unlocked and lives must not remove his successor's record.
func TestUnlockedButAlive(t *testing.T) {
	dir := t.TempDir()
	l, err := lockFolderAs(dir, host)
	if err != nil {
		t.Fatal(err)
	}
	if err := removeOwner(dir); err != nil {
		t.Fatal(err)
	}
	if err := l.clear(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a record: %v", err)
	}
	other := &folderLock{dir: dir, me: owner{Host: "two", Boot: "b2"}}
	if err := other.claim(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); !errs.Is(err, errs.Conflict) {
		t.Errorf("closed with another's record: %v", err)
	}
	if o, err := readOwner(dir); err != nil || o != other.me {
		t.Errorf("the successor's record: %v, %v", o, err)
	}
}

// The machine's id stays at home.
func TestRecordHidesTheMachineID(t *testing.T) {
	me, err := thisProcess(time.Now())
	if err != nil || me.PID != os.Getpid() || me.Host == "" || me.Boot == "" {
		t.Fatalf("%+v, %v", me, err)
	}
	b, err := json.Marshal(me)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := os.ReadFile("/etc/machine-id"); err == nil && strings.Contains(string(b), strings.TrimSpace(string(id))) {
		t.Errorf("the record is %s", b)
	}
	if !me.sameHost(me) || me.sameHost(host) {
		t.Error("a host does not know itself")
	}
}

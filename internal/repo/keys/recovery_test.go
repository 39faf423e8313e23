package keys

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"cairn/internal/errs"
)

func TestRecoveryText(t *testing.T) {
	r := NewRecovery(newFile().Repo)
	text := r.Text()
	groups := r.Groups()
	for name, typed := range map[string]string{
		"as printed":   text,
		"small":        strings.ToLower(text),
		"one line":     strings.Join(groups, " "),
		"dashes":       strings.Join(groups, "-"),
		"no cuts":      strings.Join(groups, ""),
		"other cuts":   strings.Join(groups, "")[:23] + " " + strings.Join(groups, "")[23:],
		"white space":  " \t" + strings.Join(groups, "\r\n\n ") + "\n",
		"look-alikes":  strings.NewReplacer("0", "o", "1", "l").Replace(text[len(recoveryPrefix):]),
		"look-alikes2": strings.NewReplacer("0", "O", "1", "I").Replace(text[len(recoveryPrefix):]),
	} {
		if got, err := ParseRecovery(typed); err != nil || got != r {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := ParseKey(typed); err != nil || got != Opener(r) {
			t.Errorf("%s, as a key file: %v", name, err)
		}
	}
	for _, s := range []string{"I", "L", "O", "U"} {
		if strings.Contains(strings.Join(groups, ""), s) {
			t.Errorf("the key has the letter %s", s)
		}
	}
}

// wantGroup fails unless typed is refused and exactly the group n is named.
func wantGroup(t *testing.T, typed []string, n int) {
	t.Helper()
	_, err := ParseRecovery(strings.Join(typed, " "))
	if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), fmt.Sprintf("group %d", n)) {
		t.Fatalf("%v: %v, want group %d", typed, err, n)
	}
	for _, g := range typed {
		if len(g) > 3 && strings.Contains(strings.ToUpper(err.Error()), strings.ToUpper(g)) {
			t.Fatalf("the error holds key material: %v", err)
		}
	}
}

// Every single wrong symbol and every two swapped ones are noticed, and the
// group is named.
func TestRecoveryTypos(t *testing.T) {
	groups := NewRecovery(newFile().Repo).Groups()
	change := func(n int, g string) []string {
		c := append([]string(nil), groups...)
		c[n] = g
		return c
	}
	for n, g := range groups {
		for i := range groupSize {
			for _, s := range symbols + "U*é" {
				if c := g[:i] + string(s) + g[i+1:]; c != g {
					wantGroup(t, change(n, c), n+1)
				}
			}
			for j := range i {
				b := []byte(g)
				b[i], b[j] = b[j], b[i]
				if string(b) != g {
					wantGroup(t, change(n, string(b)), n+1)
				}
			}
			wantGroup(t, change(n, g[:i]+g[i+1:]), n+1)
		}
		wantGroup(t, change(n, g+"7"), n+1)
	}
}

func TestRecoveryGroupsOutOfPlace(t *testing.T) {
	groups := NewRecovery(newFile().Repo).Groups()
	for i := range groups {
		for j := range i {
			c := append([]string(nil), groups...)
			c[i], c[j] = c[j], c[i]
			_, err := ParseRecovery(strings.Join(c, "-"))
			if want := fmt.Sprintf("groups %d, %d", j+1, i+1); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), want) {
				t.Errorf("%d and %d swapped: %v", j+1, i+1, err)
			}
		}
		_, err := ParseRecovery(strings.Join(append(append([]string(nil), groups[:i]...), groups[i+1:]...), " "))
		if want := map[bool]string{true: "ends after 9", false: fmt.Sprintf("wrong in group %d", i+1)}[i == 9]; !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("without group %d: %v", i+1, err)
		}
	}
	if _, err := ParseRecovery(strings.Join(append(groups, groups[0]), " ")); !errs.Is(err, errs.Invalid) {
		t.Errorf("a group too many: %v", err)
	}
	if _, err := ParseRecovery(""); !errs.Is(err, errs.Invalid) {
		t.Errorf("nothing: %v", err)
	}
	// A group that is right by itself, but another key's.
	other := NewRecovery(newFile().Repo).Groups()
	groups[4] = other[4]
	if _, err := ParseRecovery(strings.Join(groups, " ")); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "no single group") {
		t.Errorf("another key's group: %v", err)
	}
}

func TestTakeGroups(t *testing.T) {
	groups := NewRecovery(newFile().Repo).Groups()
	bad := groups[3][:4] + string(symbols[(strings.IndexByte(symbols, groups[3][4])+1)%32])
	for _, tt := range []struct {
		from  int
		typed string
		good  int
		ok    bool
	}{
		{1, groups[0], 1, true}, {1, strings.ToLower(groups[0]), 1, true}, {2, groups[0], 0, false}, {1, "", 0, true},
		{1, strings.Join(groups, " "), 10, true}, {2, strings.Join(groups[1:], "-"), 9, true},
		{3, groups[2] + " " + bad + " " + groups[4], 1, false}, {10, groups[9] + " " + groups[0], 1, false},
		{1, recoveryPrefix + " " + groups[0], 1, true},
	} {
		good, ok := TakeGroups(tt.from, tt.typed)
		if len(good) != tt.good || ok != tt.ok || !strings.HasPrefix(strings.ToUpper(strings.Join(good, "")), strings.Join(groups[tt.from-1:tt.from-1+tt.good], "")) {
			t.Errorf("from %d, %q: %q, %t", tt.from, tt.typed, good, ok)
		}
	}
}

// Random damage to the text never gives another key.
func TestRecoveryRandomDamage(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	r := NewRecovery(newFile().Repo)
	whole := strings.Join(r.Groups(), "")
	for range 2000 {
		b := []byte(whole)
		for range 1 + rng.IntN(4) {
			b[rng.IntN(len(b))] = symbols[rng.IntN(len(symbols))]
		}
		if got, err := ParseRecovery(string(b)); err == nil && got != r {
			t.Fatalf("%s was read as another key", b)
		}
	}
}

func FuzzRecovery(f *testing.F) {
	r := NewRecovery(newFile().Repo)
	f.Add(r.Text())
	f.Add(strings.ToLower(strings.Join(r.Groups(), "")))
	f.Add(recoveryPrefix)
	f.Add("OIL-ſı é U")
	f.Fuzz(func(t *testing.T, s string) {
		TakeGroups(1, s)
		got, err := ParseRecovery(s)
		if err != nil {
			if !errs.Is(err, errs.Invalid) {
				t.Fatal(err)
			}
			return
		}
		if again, err := ParseRecovery(got.Text()); err != nil || again != got {
			t.Fatalf("accepted, but reads back differently: %v", err)
		}
	})
}

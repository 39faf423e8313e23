package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"

	"cairn/client"
)

// holey is content in memory: data is where it is not zeros.
type holey struct {
	content []byte
	data    [][2]int64 // begin, end
	dataErr error      // when nothing follows, instead of io.EOF
	readErr error
	asked   int
}

func (h *holey) Data(_ context.Context, off int64) (begin, end int64, err error) {
	h.asked++
	for _, d := range h.data {
		if d[1] > off {
			return max(off, d[0]), d[1], nil
		}
	}
	if h.dataErr != nil {
		return 0, 0, h.dataErr
	}
	return 0, 0, io.EOF
}

func (h *holey) ReadAt(_ context.Context, buf []byte, off int64) error {
	if h.readErr != nil {
		return h.readErr
	}
	copy(buf, h.content[off:])
	return nil
}

// storeRanges reads an import as RFC 9110 has it.
func storeRanges(r *http.Request) (content []byte, sent int64, err error) {
	var size int
	if _, err := fmt.Sscan(r.FormValue("size_bytes"), &size); err != nil {
		return nil, 0, err
	}
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/byteranges" {
		return nil, 0, fmt.Errorf("type %s: %w", kind, err)
	}
	content = make([]byte, size)
	parts := multipart.NewReader(r.Body, params["boundary"])
	for {
		part, err := parts.NextRawPart()
		if err == io.EOF {
			return content, sent, nil
		}
		if err != nil {
			return nil, 0, err
		}
		b, err := io.ReadAll(part)
		if err != nil {
			return nil, 0, err
		}
		var first, last, whole int
		if _, err := fmt.Sscanf(part.Header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &whole); err != nil || whole != size || last-first+1 != len(b) {
			return nil, 0, fmt.Errorf("%d bytes as %s: %w", len(b), part.Header.Get("Content-Range"), err)
		}
		copy(content[first:], b)
		sent += int64(len(b))
	}
}

func TestImportSparse(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for round := range 30 {
		h := &holey{content: make([]byte, 1+rnd.IntN(4<<20))}
		for at := rnd.Int64N(300_000); at < int64(len(h.content)); at += rnd.Int64N(300_000) {
			end := min(at+1+rnd.Int64N(200_000), int64(len(h.content)))
			for i := at; i < end; i++ {
				h.content[i] = byte(rnd.IntN(256))
			}
			h.data = append(h.data, [2]int64{at, end})
			at = end
		}
		if round == 0 {
			h.data, h.content = nil, make([]byte, 5)
		}
		var stored []byte
		var sent int64
		c := dial(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var err error
			if stored, sent, err = storeRanges(r); err != nil {
				t.Error(err)
			}
			_, _ = io.WriteString(w, jobBody)
		}))
		if _, err := c.ImportSparse(t.Context(), client.ImportVolume{Name: "n", SizeBytes: int64(len(h.content))}, h); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(stored, h.content) {
			t.Fatal("other content arrived")
		}
		most := int64(0)
		for _, d := range h.data {
			most += d[1] - d[0] + 2<<16
		}
		if sent > most {
			t.Errorf("%d bytes were sent, %d at most are needed", sent, most)
		}
	}
}

func TestImportSparseFails(t *testing.T) {
	broken := fmt.Errorf("bad sector: %w", io.EOF) // not the end, although it wraps it
	content := make([]byte, 1<<20)
	all := [][2]int64{{0, 1 << 20}}
	for name, tt := range map[string]struct {
		h    *holey
		want string
	}{
		"data":                {&holey{content: content, dataErr: broken}, "look for what is to be imported: bad sector"},
		"data after the last": {&holey{content: content, data: all, dataErr: broken}, "look for what is to be imported: bad sector"},
		"read":                {&holey{content: content, data: all, readErr: broken}, "read what is to be imported: bad sector"},
		"past the end":        {&holey{content: content, data: [][2]int64{{5, 1<<20 + 1}}}, "impossible range 5 to 1048577"},
		"empty":               {&holey{content: content, data: [][2]int64{{5, 5}}}, "impossible range 5 to 5"},
	} {
		t.Run(name, func(t *testing.T) {
			whole := make(chan bool, 1)
			c := dial(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _, err := storeRanges(r)
				whole <- err == nil
				_, _ = io.WriteString(w, jobBody)
			}))
			_, err := c.ImportSparse(t.Context(), client.ImportVolume{Name: "n", SizeBytes: 1 << 20}, tt.h)
			if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, client.ErrUnreachable) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if <-whole {
				t.Error("the server took it for whole")
			}
		})
	}
}

func TestImportSparseRefused(t *testing.T) {
	c := dial(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusConflict)
		_, _ = io.WriteString(w, `{"code":"2110","message":"Exists, n is taken"}`)
	}))
	h := &holey{content: make([]byte, 8<<20), data: [][2]int64{{0, 8 << 20}}}
	_, err := c.ImportSparse(t.Context(), client.ImportVolume{Name: "n", SizeBytes: 8 << 20}, h)
	if !client.IsStatus(err, http.StatusConflict) || h.asked != 0 {
		t.Errorf("asked %d times: %v", h.asked, err)
	}
}

package e2e

import (
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"cairn/test/e2e/harness"
)

// TestLoad throws 200 creates at 50 volumes at once. Each is refused at once
// because its volume is busy, or becomes a job that ends well; what was
// accepted is there, what was refused left nothing.
func TestLoad(t *testing.T) {
	const volumes, creates = 50, 200
	srv := serve(t)
	w := &world{srv: srv, dir: t.TempDir()}
	r := harness.Rand(harness.Seed(t))
	for range volumes {
		img := harness.NewImage(512 << 10)
		for range 3 {
			img.Apply(harness.RandomEdit(r, img.Size()))
		}
		w.register(t, img)
	}

	answers := make([]harness.Response, creates)
	errs := make([]error, creates)
	var wg sync.WaitGroup
	gate := make(chan struct{})
	for i := range creates {
		wg.Go(func() {
			<-gate
			answers[i], errs[i] = srv.API().TrySend(http.MethodPost, "volume_snapshots",
				map[string]any{"resources": []string{w.vols[i%volumes].id}, "snapshot_name": "load"})
		})
	}
	close(gate)
	wg.Wait()

	accepted := map[string][]string{} // volume → point ids
	refused := 0
	for i, a := range answers {
		if errs[i] != nil {
			t.Fatalf("create %d was not answered: %v", i, errs[i])
		}
		if a.Status == http.StatusConflict {
			if msg := a.WantError(t, http.StatusConflict, "1400"); !strings.HasSuffix(msg, "please try later") {
				t.Errorf("a busy volume is refused with %q, which does not end in `please try later`", msg)
			}
			refused++
			continue
		}
		j := srv.API().OK(t, a.Begin(t))
		if len(j.ResourceIDs) != 1 {
			t.Fatalf("job %s made %v, want one point", j.ID, j.ResourceIDs)
		}
		v := w.vols[i%volumes].id
		accepted[v] = append(accepted[v], j.ResourceIDs[0])
	}
	srv.API().WaitAll(t)
	t.Logf("%d creates on %d volumes: %d done, %d refused as busy", creates, volumes, creates-refused, refused)

	for _, v := range w.vols {
		if len(accepted[v.id]) == 0 {
			t.Errorf("%s refused every create", v.name)
		}
		rows := srv.API().Snapshots(t, url.Values{"resource_id": {v.id}, "status": {harness.AllStatuses}})
		if len(rows) != len(accepted[v.id]) {
			t.Errorf("%s has %d points, but %d creates were accepted", v.name, len(rows), len(accepted[v.id]))
		}
		heads := 0
		for _, row := range rows {
			heads += row.IsHead
			if row.Status != "available" {
				t.Errorf("%s of %s is %s", row.ID, v.name, row.Status)
				continue
			}
			srv.API().WantContent(t, "volume_snapshots", row.ID, v.content)
		}
		if heads != 1 {
			t.Errorf("%s has %d heads, want 1", v.name, heads)
		}
	}
	srv.API().ScrubClean(t)
}

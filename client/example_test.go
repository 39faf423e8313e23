package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	"cairn/client"
)

// exampleServer stands for a server with one volume and one snapshot.
func exampleServer() *httptest.Server {
	job := `{"job_id":"6fcb4e9a","action":"CreateSnapshots","status":"%s","resource_ids":["ss-BTZOND4X"]}`
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v2/zone/ac1/volume_snapshots", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, job, client.JobPending)
	})
	mux.HandleFunc("GET /v2/zone/ac1/job/6fcb4e9a", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, job, client.JobSuccessful)
	})
	mux.HandleFunc("GET /v2/zone/ac1/volume_snapshots", func(w http.ResponseWriter, r *http.Request) {
		if ids := r.FormValue("snapshots"); ids != "" && ids != "ss-BTZOND4X" {
			_, _ = io.WriteString(w, `{"snapshots":[],"total_count":0}`)
			return
		}
		_, _ = io.WriteString(w, `{"snapshots":[{"snapshot_id":"ss-BTZOND4X","snapshot_name":"nightly","snapshot_type":"IS_FULL","is_head":1}],"total_count":1}`)
	})
	mux.HandleFunc("GET /v2/zone/ac1/volume_snapshots/ss-BTZOND4X/export", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "the volume's bytes")
	})
	return httptest.NewServer(mux)
}

// Take a point and wait until it is there.
func ExampleClient_WaitJob() {
	srv := exampleServer()
	defer srv.Close()
	ctx := context.Background()

	c, err := client.New(srv.URL)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	job, err := c.CreateSnapshots(ctx, client.CreateSnapshots{Resources: []string{"vol-SACNVJNS"}, Name: "nightly"})
	if err != nil {
		fmt.Println(err)
		return
	}
	job, err = c.WaitJob(ctx, job.ID, nil)
	if err == nil {
		err = job.Err()
	}
	fmt.Println(job.Status, job.ResourceIDs, err)
	// Output: successful [ss-BTZOND4X] <nil>
}

// List what there is.
func ExampleClient_AllSnapshots() {
	srv := exampleServer()
	defer srv.Close()
	c, err := client.New(srv.URL)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	page, err := c.AllSnapshots(context.Background(), client.SnapshotFilter{Type: client.Full})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, s := range page.Snapshots {
		fmt.Println(s.ID, s.Name, s.IsFull(), s.IsHead)
	}
	// Output: ss-BTZOND4X nightly true true
}

// Stream a point out. A cut stream is an error, never a shorter whole.
func ExampleClient_ExportSnapshot() {
	srv := exampleServer()
	defer srv.Close()
	c, err := client.New(srv.URL)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	stream, err := c.ExportSnapshot(context.Background(), "ss-BTZOND4X", client.Raw)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer stream.Close()
	var content strings.Builder
	n, err := io.Copy(&content, stream)
	fmt.Println(n, content.String(), err)
	// Output: 18 the volume's bytes <nil>
}

// Tell what went wrong apart.
func ExampleError() {
	srv := exampleServer()
	defer srv.Close()
	c, err := client.New(srv.URL)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	_, err = c.Snapshot(context.Background(), "ss-NOTTHERE")
	var e *client.Error
	switch {
	case errors.Is(err, client.ErrUnreachable):
		fmt.Println("start the server")
	case errors.As(err, &e):
		fmt.Println(e.Status, e.Code, e.Sentence())
	}
	// Output: 404 2100 snapshot ss-NOTTHERE does not exist in zone ac1; list shows those that do
}

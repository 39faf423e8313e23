package httpapi

import (
	"bytes"
	"compress/gzip"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// docs holds the page at /docs; docs/README.md says where its files come from.
//
//go:embed docs
var docs embed.FS

// docsPolicy lets the page load nothing from elsewhere. Swagger UI sets style
// attributes and draws its icons from data: URLs.
const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; " +
	"font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// registerDocs serves the document and the page. Call it after every register.
func (a *api) registerDocs(mux *http.ServeMux) error {
	doc := a.huma.OpenAPI()
	// A delete answers with a job, or with dry_run=1 with a plan.
	schemas := doc.Components.Schemas
	either := &huma.Schema{OneOf: []*huma.Schema{
		schemas.Schema(reflect.TypeFor[jobObject](), true, ""), schemas.Schema(reflect.TypeFor[deletePlan](), true, ""),
	}}
	for _, path := range []string{under("/volume_snapshots"), under("/volume_snapshots/{snapshot_id}")} {
		doc.Paths[path].Delete.Responses["200"].Content["application/json"].Schema = either
	}
	// huma registers the shapes of its own errors, which are never sent.
	for _, name := range []string{"ErrorModel", "ErrorDetail"} {
		delete(schemas.Map(), name)
	}
	text, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the OpenAPI document: %w", err)
	}
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		serveFile(w, "application/json", text)
	})
	return a.registerPage(mux)
}

func (a *api) registerPage(mux *http.ServeMux) error {
	for route, file := range map[string]struct{ name, kind string }{
		"/docs":                      {"index.html", "text/html; charset=utf-8"},
		"/docs/init.js":              {"init.js", "text/javascript; charset=utf-8"},
		"/docs/swagger-ui.css":       {"swagger-ui.css.gz", "text/css; charset=utf-8"},
		"/docs/swagger-ui-bundle.js": {"swagger-ui-bundle.js.gz", "text/javascript; charset=utf-8"},
	} {
		packed, err := docs.ReadFile("docs/" + file.name)
		if err != nil {
			return fmt.Errorf("read the page's file %s: %w", file.name, err)
		}
		zipped := strings.HasSuffix(file.name, ".gz")
		mux.HandleFunc("GET "+route, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Security-Policy", docsPolicy)
			w.Header().Set("Referrer-Policy", "no-referrer")
			body := packed
			if zipped {
				w.Header().Set("Vary", "Accept-Encoding")
				if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
					w.Header().Set("Content-Encoding", "gzip")
				} else {
					plain, err := unzip(packed)
					if err != nil {
						writeError(w, r, err)
						return
					}
					body = plain
				}
			}
			serveFile(w, file.kind, body)
		})
	}
	return nil
}

func unzip(packed []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

func serveFile(w http.ResponseWriter, kind string, body []byte) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	w.Header().Set("Cache-Control", "no-cache")
	// A client that went away does not read the answer: nothing to do.
	_, _ = w.Write(body)
}

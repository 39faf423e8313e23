package httpapi_test

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

// document loads and validates what the server serves.
func document(t testing.TB, s *server) *openapi3.T {
	t.Helper()
	a := s.do(t, "GET", "/openapi.json", "", "")
	if a.StatusCode != http.StatusOK || a.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("GET /openapi.json: %s", a.Status)
	}
	doc, err := openapi3.NewLoader().LoadFromData(a.body)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(context.Background()); err != nil {
		t.Fatalf("the document is not valid: %v", err)
	}
	return doc
}

func TestDocument(t *testing.T) {
	s := serve(t, newFake(), nil)
	doc := document(t, s)
	if !strings.HasPrefix(doc.OpenAPI, "3.1") || doc.Info.Version != "1.2.3" {
		t.Errorf("openapi %q, version %q", doc.OpenAPI, doc.Info.Version)
	}
	seen := map[string]bool{}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			if op.OperationID == "" || seen[op.OperationID] {
				t.Errorf("%s %s: operationId %q is empty or taken", method, path, op.OperationID)
			}
			seen[op.OperationID] = true
			if op.Responses.Default() == nil {
				t.Errorf("%s %s documents no errors", method, path)
			}
		}
	}
	for _, name := range []string{"ErrorModel", "ErrorDetail"} {
		if doc.Components.Schemas[name] != nil {
			t.Errorf("the document has %s, which is never sent", name)
		}
	}
	if strings.Contains(string(s.do(t, "GET", "/openapi.json", "", "").body), "$schema") {
		t.Error("the document promises $schema")
	}
}

// operation finds the documented operation of a request, nil if none is.
func operation(doc *openapi3.T, method, target string) *openapi3.Operation {
	path, _, _ := strings.Cut(target, "?")
	have := strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
	if len(have) > 3 && have[3] == "snapshots" {
		have[3] = "volume_snapshots"
	}
	if method == http.MethodHead {
		method = http.MethodGet
	}
	var found *openapi3.Operation
	best := -1
	for pattern, item := range doc.Paths.Map() {
		want := strings.FieldsFunc(pattern, func(r rune) bool { return r == '/' })
		op := item.GetOperation(method)
		if len(want) != len(have) || op == nil {
			continue
		}
		literal := 0
		for i := range want {
			if strings.HasPrefix(want[i], "{") {
				continue
			}
			if name, err := url.PathUnescape(have[i]); err != nil || name != want[i] {
				literal = -1
				break
			}
			literal++
		}
		if literal > best {
			found, best = op, literal
		}
	}
	return found
}

// checkDocumented validates an answer against the document.
func checkDocumented(t testing.TB, doc *openapi3.T, method, target string, a answer) {
	t.Helper()
	var schema *openapi3.Schema
	op := operation(doc, method, target)
	switch {
	case a.StatusCode >= 300:
		schema = doc.Components.Schemas["WireError"].Value
	case op == nil:
		t.Errorf("%s %s is answered with %d but not documented", method, target, a.StatusCode)
		return
	}
	if op != nil {
		response := op.Responses.Value(strconv.Itoa(a.StatusCode))
		if response == nil && a.StatusCode >= 300 {
			response = op.Responses.Default()
		}
		if response == nil {
			t.Errorf("%s %s: status %d is not documented", method, target, a.StatusCode)
			return
		}
		if a.StatusCode == http.StatusNoContent || method == http.MethodHead {
			return
		}
		kind, _, _ := strings.Cut(a.Header.Get("Content-Type"), ";")
		media := response.Value.Content[kind]
		if media == nil {
			t.Errorf("%s %s: Content-Type %q is not documented for %d", method, target, kind, a.StatusCode)
			return
		}
		if kind != "application/json" {
			return
		}
		schema = media.Schema.Value
	}
	if method == http.MethodHead {
		return
	}
	if err := doc.ValidateSchemaJSON(schema, a.json(t), openapi3.EnableJSONSchema2020()); err != nil {
		t.Errorf("%s %s: the answer is not as documented: %v\n%s", method, target, err, a.body)
	}
}

func TestDocsPageIsOffline(t *testing.T) {
	s := serve(t, newFake(), nil)
	for path, want := range map[string]string{
		"/docs": "swagger-ui-bundle.js", "/docs/": "init.js", "/docs/init.js": "/openapi.json",
		"/docs/swagger-ui.css": ".swagger-ui", "/docs/swagger-ui-bundle.js": "SwaggerUIBundle",
	} {
		a := s.do(t, "GET", path, "", "")
		if a.StatusCode != http.StatusOK || !strings.Contains(string(a.body), want) || a.cut != nil {
			t.Errorf("GET %s: %s, %d bytes, %v", path, a.Status, len(a.body), a.cut)
		}
		if p := a.Header.Get("Content-Security-Policy"); !strings.Contains(p, "default-src 'none'") {
			t.Errorf("GET %s: policy %q lets the page load from elsewhere", path, p)
		}
		if path == "/docs" && strings.Contains(string(a.body), "//") {
			t.Errorf("the page names another server:\n%s", a.body)
		}
		z := s.do(t, "GET", path, "Accept-Encoding: gzip\r\n", "")
		if z.StatusCode != http.StatusOK || strings.HasSuffix(path, ".css") && z.Header.Get("Content-Encoding") != "gzip" {
			t.Errorf("GET %s with gzip: %s, encoding %q", path, z.Status, z.Header.Get("Content-Encoding"))
		}
	}
}

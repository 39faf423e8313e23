// Package arch_test draws the import picture of the module and fails when an
// arrow turns up: a request goes down, never up, and only cmd names a driver.
package arch_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "cairn/"

// room is one folder whose insides belong together.
type room struct {
	imports []string // packages of the module that it may import, besides its own insides
	never   []string // packages of anybody that it must not import
}

// leaves may be imported by every room below cmd, client excepted.
var leaves = []string{"internal/errs", "internal/extent", "internal/durable"}

// rooms is the picture. A folder without a line here is an error, so that a
// new room gets its place before it gets importers.
var rooms = map[string]room{
	"internal/errs":      {},
	"internal/extent":    {},
	"internal/durable":   {},
	"internal/blobstore": {},
	"internal/nbd":       {},
	"internal/qmp":       {},
	"internal/libvirt":   {},
	"internal/compute":   {imports: []string{"internal/nbd", "internal/qmp", "internal/libvirt"}},
	"internal/repo":      {imports: []string{"internal/blobstore"}},
	"internal/volume":    {imports: []string{"internal/nbd", "internal/libvirt"}},
	"internal/qcow2":     {},
	"internal/engine":    {imports: []string{"internal/repo", "internal/volume", "internal/qcow2"}},
	"internal/chain":     {never: []string{"context", "database/sql", "os", "net", "net/http", "math/rand", "math/rand/v2", "crypto/rand"}},
	"internal/job":       {},
	"internal/service":   {imports: []string{"internal/chain", "internal/job", "internal/engine", "internal/volume", "internal/compute"}},
	"internal/metadb":    {imports: []string{"internal/service", "internal/chain", "internal/job"}},
	"internal/journal":   {imports: []string{"internal/service", "internal/chain", "internal/job", "internal/engine"}},
	"internal/httpapi":   {imports: []string{"internal/service", "internal/chain", "internal/job"}},
	"internal/console":   {imports: []string{"client"}},
	"internal/cli":       {imports: []string{"client", "internal/qcow2"}},
	"internal/debug":     {imports: []string{"internal/repo", "internal/blobstore"}},
	"client":             {},
}

// free may import what they like: the wiring, and tests of the whole.
var free = []string{"cmd", "test"}

// suites are packages of tests although their files are not named so.
var suites = []string{"blobtest", "foldertest", "volumetest", "metadbtest", "computetest", "libvirttest"}

// file is one Go file that ships, and what it imports.
type file struct {
	name    string // from the module's root
	dir     string
	imports []string
	syntax  *ast.File
}

func shippedFiles(t *testing.T) []file {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	var files []file
	err = fs.WalkDir(os.DirFS(root), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := path.Base(name)
		if d.IsDir() {
			if name != "." && (strings.HasPrefix(base, ".") || base == "testdata" || base == "tools" || slices.Contains(suites, base)) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(base, ".go") || strings.HasSuffix(base, "_test.go") {
			return nil
		}
		syntax, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		f := file{name: name, dir: path.Dir(name), syntax: syntax}
		for _, spec := range syntax.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			f.imports = append(f.imports, p)
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func within(dir, parent string) bool { return dir == parent || strings.HasPrefix(dir, parent+"/") }

// roomOf names the room of a folder; "" if it has none.
func roomOf(dir string) string {
	for name := range rooms {
		if within(dir, name) {
			return name
		}
	}
	return ""
}

// judge says what is wrong with an import, or "".
func judge(dir, imported string) string {
	if slices.ContainsFunc(free, func(f string) bool { return within(dir, f) }) {
		return ""
	}
	from := roomOf(dir)
	if from == "" {
		return fmt.Sprintf("the folder %s has no place in the picture; give it a line in rooms", dir)
	}
	local, ours := strings.CutPrefix(imported, module)
	switch {
	case !ours && slices.Contains(rooms[from].never, imported):
		return fmt.Sprintf("%s must not know of %s", from, imported)
	case ours && slices.Contains(suites, path.Base(local)):
		return local + " is a suite for tests"
	case !ours || within(local, from):
		return ""
	case from == "client":
		return "client is public and imports nothing of ours"
	case slices.Contains(leaves, local) || slices.Contains(rooms[from].imports, local):
		return ""
	case roomOf(local) != local && slices.Contains(rooms[from].imports, roomOf(local)):
		return fmt.Sprintf("%s is an inside of %s; only cmd and %s itself may name it", local, roomOf(local), roomOf(local))
	}
	return fmt.Sprintf("no arrow leads from %s to %s", from, local)
}

func TestImports(t *testing.T) {
	files := shippedFiles(t)
	if len(files) < 20 {
		t.Fatalf("found only %d files: the walk is broken", len(files))
	}
	for _, f := range files {
		for _, imported := range f.imports {
			if wrong := judge(f.dir, imported); wrong != "" {
				t.Errorf("%s imports %s: %s", f.name, imported, wrong)
			}
		}
	}
}

// The judge itself: arrows that must be seen.
func TestJudge(t *testing.T) {
	tests := []struct {
		dir, imported string
		ok            bool
	}{
		{"internal/service", "cairn/internal/chain", true},
		{"internal/service", "cairn/internal/errs", true},
		{"internal/service", "cairn/internal/metadb", false},
		{"internal/service", "cairn/internal/volume/file", false},
		{"internal/chain", "cairn/internal/job", false},
		{"internal/chain", "context", false},
		{"internal/chain", "time", true},
		{"internal/engine", "cairn/internal/repo/pack", false},
		{"internal/engine", "cairn/internal/qcow2", true},
		{"internal/qcow2", "cairn/internal/extent", true},
		{"internal/qcow2", "cairn/internal/engine", false},
		{"internal/repo/index", "cairn/internal/repo/addr", true},
		{"internal/repo", "cairn/internal/engine", false},
		{"internal/blobstore/file", "cairn/internal/blobstore", true},
		{"internal/volume/file", "cairn/internal/volume/volumetest", false},
		{"internal/volume/live", "cairn/internal/nbd", true},
		{"internal/nbd", "cairn/internal/volume", false},
		{"internal/service", "cairn/internal/nbd", false},
		{"internal/job", "cairn/internal/service", false},
		{"internal/cli", "cairn/client", true},
		{"internal/cli", "cairn/internal/qcow2", true},
		{"internal/cli", "cairn/internal/service", false},
		{"internal/debug", "cairn/internal/repo", true},
		{"internal/debug", "cairn/internal/repo/pack", false},
		{"internal/debug", "cairn/internal/engine", false},
		{"client", "cairn/internal/errs", false},
		{"internal/unheard", "fmt", false},
		{"cmd/cairn", "cairn/internal/volume/file", true},
	}
	for _, tt := range tests {
		if wrong := judge(tt.dir, tt.imported); (wrong == "") != tt.ok {
			t.Errorf("%s importing %s: %q", tt.dir, tt.imported, wrong)
		}
	}
}

// chain is handed the time; it never asks for it.
func TestChainHasNoClock(t *testing.T) {
	for _, f := range shippedFiles(t) {
		if !within(f.dir, "internal/chain") {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "time" && (sel.Sel.Name == "Now" || sel.Sel.Name == "Since" || sel.Sel.Name == "Until") {
				t.Errorf("%s calls time.%s", f.name, sel.Sel.Name)
			}
			return true
		})
	}
}

// Registries filled by init hide who uses what; cmd wires by name.
func TestNoInit(t *testing.T) {
	for _, f := range shippedFiles(t) {
		for _, decl := range f.syntax.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s has a func init", f.name)
			}
		}
	}
}

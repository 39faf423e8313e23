package nbdvolume

import (
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cairn/internal/errs"
	"cairn/internal/nbd"
	"cairn/internal/volume"
)

func TestProbeRefusesURIs(t *testing.T) {
	d := hasty(t)
	long := "/" + strings.Repeat("x", 107)
	for uri, says := range map[string]string{
		"":                                     "begins with nbd://",
		"/dev/sda":                             "begins with nbd://",
		"http://host/x":                        "begins with nbd://",
		"nbds://host/x":                        "through a tunnel",
		"nbd:host:10809":                       "two slashes",
		"nbd:///x":                             "nbd://HOST:PORT/EXPORT",
		"nbd://host:/x":                        "no port",
		"nbd://host:99999/x":                   "99999",
		"nbd://host/x?exportname=y":            `"exportname"`,
		"nbd://host/x#y":                       "%23",
		"nbd+unix:///x":                        "nbd+unix:///EXPORT?socket=PATH",
		"nbd+unix://host/x?socket=/s":          "three slashes",
		"nbd+unix:///x?socket=s":               "absolute path",
		"nbd+unix:///x?socket=" + long:         "at most 107 bytes",
		"nbd://user@host/x":                    "as %40",
		"nbd://user:hunter@host/x":             "remove one with its password",
		"nbd://user:1234/hunter@host/x":        "remove one with its password",
		"nbd://user:1234?hunter@host/x":        "remove one with its password",
		"nbd://user:1234#hunter@host/x":        "remove one with its password",
		"nbd://user:71234/hunter@host/x":       "remove one with its password",
		"nbds://user:hunter@host/x":            "remove one with its password",
		"nbd://u:hunter%zz@host/x":             "remove one with its password",
		"nbd://u:hunter%40host/x":              "no NBD URI",
		"nbd://host/x?password=hunter":         `"password"`,
		"nbd+unix:///x?socket=/s&pass=hunter":  `"pass"`,
		"nbd+unix:///x?socket=/s&pass=%zz1234": "percent-encode",

		"nbd://host/x?cairn-bitmaps=":                            `can only be "trust"`,
		"nbd://host/x?cairn-bitmaps":                             `can only be "trust"`,
		"nbd://host/x?cairn-bitmaps=hunter":                      `can only be "trust"`,
		"nbd://host/x?cairn-bitmaps=trust&cairn-bitmaps=trust":   `can only be "trust", once`,
		"nbd://host/x?cairn-bitmaps=trust#":                      `can only be "trust"`,
		"nbd://host/x?cairn-bitmaps=trust&%zz":                   "percent-encode",
		"nbd+unix:///x?cairn-bitmaps=trust":                      "names its socket once",
		"nbd+unix:///x?socket=/s&cairn-bitmaps=trust&socket=/s2": "names its socket once",
	} {
		t.Run(uri, func(t *testing.T) {
			_, err := d.Probe(t.Context(), uri)
			wantKind(t, err, errs.Invalid, says)
			for _, secret := range []string{"hunter", "1234"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("a password is told: %v", err)
				}
			}
		})
	}
}

// Two names of one export have one identity, and the path can be used as it is.
func TestProbeFindsTheCanonicalName(t *testing.T) {
	s := serve(t)
	tcp := serveAt(t, "tcp", "127.0.0.1:0")
	for _, export := range []string{"", "Disk", "a b%?&=#@/ü"} {
		for _, on := range []*server{s, tcp} {
			disk := newDisk(1 << 20)
			on.add(exported(export, disk), disk)
		}
	}
	dir := shortDir(t)
	link, inLinked := filepath.Join(dir, "l"), filepath.Join(dir, "d", "s")
	ok(t, os.Symlink(s.at.Address, link))
	ok(t, os.Symlink(filepath.Dir(s.at.Address), filepath.Dir(inLinked)))
	_, port, err := net.SplitHostPort(tcp.at.Address)
	ok(t, err)
	through := func(socket, export string) string {
		return nbd.URI{Network: "unix", Address: socket, Export: export}.String()
	}
	const trust = "cairn-bitmaps=trust"
	d := newDriver(t, t.TempDir())
	for _, tt := range []struct{ uri, path string }{
		{s.uri("Disk"), s.uri("Disk")},
		{s.uri(""), s.uri("")},
		{"nbd+unix://?socket=" + s.at.Address, s.uri("")},
		{through(link, "Disk"), s.uri("Disk")},
		{through(inLinked, "Disk"), s.uri("Disk")},
		{through(dir+"/../"+filepath.Base(dir)+"/./l", "Disk"), s.uri("Disk")},
		{s.uri("Disk") + "&" + trust, s.uri("Disk") + "&" + trust},
		{"nbd+unix:///Disk?" + trust + "&socket=" + url.QueryEscape(link), s.uri("Disk") + "&" + trust},
		{"nbd://LocalHost:" + port + "/Disk", "nbd://localhost:" + port + "/Disk"},
		{"nbd://localhost:" + port + "?" + trust, "nbd://localhost:" + port + "/?" + trust},
		{"nbd://localhost:" + port + "/Disk?" + trust, "nbd://localhost:" + port + "/Disk?" + trust},
		{"nbd://127.0.0.1:" + port + "/a%20b%25%3F&=%23%40/%C3%BC", "nbd://127.0.0.1:" + port + "/a%20b%25%3F&=%23%40/%C3%BC"},
	} {
		t.Run(tt.uri, func(t *testing.T) {
			p, err := d.Probe(t.Context(), tt.uri)
			ok(t, err)
			identity := "nbd:" + strings.NewReplacer("?"+trust, "", "&"+trust, "", "%40", "@").Replace(tt.path)
			if want := (volume.Probe{Path: tt.path, Identity: identity, SizeBytes: 1 << 20}); p != want {
				t.Fatalf("got %+v, want %+v", p, want)
			}
			spec := volume.Spec{ID: "vol-1", Path: p.Path, Identity: p.Identity, SizeBytes: p.SizeBytes}
			at, err := locate(spec)
			ok(t, err)
			if at.trust != strings.Contains(tt.uri, trust) {
				t.Errorf("trust is %v", at.trust)
			}
			_, err = d.Size(t.Context(), spec)
			ok(t, err)
		})
	}
}

func TestProbeLooksAtTheExport(t *testing.T) {
	s := serve(t)
	image, almost, tiny, empty := newDisk(1<<20), newDisk(1<<20), newDisk(3), newDisk(0)
	image.put([]byte("QFI\xfb\x00\x00\x00\x03"), 0)
	almost.put([]byte("QFI\xfc"), 0)
	tiny.put([]byte("QFI"), 0)
	for name, disk := range map[string]*disk{"image": image, "almost": almost, "tiny": tiny, "empty": empty} {
		s.add(exported(name, disk), disk)
	}
	d := hasty(t)
	for export, want := range map[string]struct {
		kind errs.Kind
		says string
	}{
		"image": {errs.Invalid, "qemu-nbd -f qcow2"},
		"empty": {errs.Invalid, "at least one byte"},
		"none":  {errs.NotFound, "correct the name of the export"},
	} {
		_, err := d.Probe(t.Context(), s.uri(export))
		wantKind(t, err, want.kind, want.says, s.uri(export))
	}
	for _, export := range []string{"almost", "tiny"} {
		p, err := d.Probe(t.Context(), s.uri(export))
		ok(t, err)
		if p.Device || p.SizeBytes == 0 {
			t.Errorf("%s: %+v", export, p)
		}
	}
}

// babbler is a socket that answers everybody with text.
func babbler(t *testing.T, path, text string) {
	l, err := net.Listen("unix", path)
	ok(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := nc.Write([]byte(text)); err != nil {
				t.Error(err)
			}
			ok(t, nc.Close())
		}
	}()
	t.Cleanup(func() {
		ok(t, l.Close())
		<-done
	})
}

func TestProbeOfNoServer(t *testing.T) {
	dir := shortDir(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	babbler(t, at("http"), strings.Repeat("HTTP/1.1 400 Bad Request\r\n", 10))
	babbler(t, at("mute"), "")
	ok(t, os.WriteFile(at("file"), nil, 0o600))
	ok(t, os.Symlink("nowhere", at("dangling")))
	left, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: at("left")})
	ok(t, err)
	left.SetUnlinkOnClose(false)
	ok(t, left.Close())
	grams, err := net.ListenPacket("unixgram", at("grams"))
	ok(t, err)
	defer grams.Close()
	deep := filepath.Join(dir, strings.Repeat("d", 100))
	ok(t, os.Mkdir(deep, 0o700))
	ok(t, os.WriteFile(filepath.Join(deep, "s"), nil, 0o600))
	ok(t, os.Symlink(deep, at("deep")))
	unused, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	ok(t, unused.Close())

	d := hasty(t)
	for uri, want := range map[string]struct {
		kind errs.Kind
		says string
	}{
		"nbd+unix:///x?socket=" + at("none"):     {errs.NotFound, "start it, or correct the URI"},
		"nbd+unix:///x?socket=" + at("dangling"): {errs.NotFound, "start it, or correct the URI"},
		"nbd+unix:///x?socket=" + at("file/s"):   {errs.NotFound, "start it, or correct the URI"},
		"nbd+unix:///x?socket=" + at("left"):     {errs.NotFound, "start it, or correct the URI"},
		"nbd+unix:///x?socket=" + at("file"):     {errs.NotFound, "start it, or correct the URI"},
		"nbd+unix:///x?socket=" + at("grams"):    {errs.Invalid, "no NBD server listens"},
		"nbd+unix:///x?socket=" + at("http"):     {errs.Unavailable, "does not answer as one"},
		"nbd+unix:///x?socket=" + at("mute"):     {errs.Unavailable, "does not answer as one"},
		"nbd+unix:///x?socket=" + at("deep/s"):   {errs.Invalid, "at most 107 bytes"},
		"nbd://" + unused.Addr().String() + "/x": {errs.NotFound, "start it, or correct the URI"},
	} {
		t.Run(uri, func(t *testing.T) {
			_, err := d.Probe(t.Context(), uri)
			wantKind(t, err, want.kind, want.says)
		})
	}
}

// What this server serves itself is refused, whatever it is called.
func TestProbeRefusesOurOwn(t *testing.T) {
	s, tcp := serve(t), serveAt(t, "tcp", "127.0.0.1:0")
	for _, on := range []*server{s, tcp} {
		disk := newDisk(1 << 20)
		on.add(exported("x", disk), disk)
	}
	dir := shortDir(t)
	link, hard := filepath.Join(dir, "l"), filepath.Join(dir, "h")
	ok(t, os.Symlink(s.at.Address, link))
	ok(t, os.Link(s.at.Address, hard))
	_, port, err := net.SplitHostPort(tcp.at.Address)
	ok(t, err)
	own, err := New(Config{Dir: t.TempDir(), OwnSockets: []string{filepath.Join(dir, "none"), s.at.Address}, OwnAddress: tcp.at.Address})
	ok(t, err)
	other, err := New(Config{Dir: t.TempDir(), OwnSockets: []string{filepath.Join(dir, "none")}, OwnAddress: "127.0.0.1:1"})
	ok(t, err)
	for _, uri := range []string{
		s.uri("x"),
		nbd.URI{Network: "unix", Address: link, Export: "x"}.String(),
		nbd.URI{Network: "unix", Address: hard, Export: "x"}.String(),
		"nbd://127.0.0.1:" + port + "/x",
		"nbd://127.0.0.2:" + port + "/x",
		"nbd://localhost:" + port + "/x",
		"nbd://LOCALHOST:" + port + "/x",
		"nbd://0.0.0.0:" + port + "/x",
		"nbd://[::1]:" + port + "/x",
		"nbd://[::ffff:127.0.0.1]:" + port + "/x",
	} {
		_, err := own.Probe(t.Context(), uri)
		wantKind(t, err, errs.Invalid, "this server itself")
	}
	// A volume that was registered before the server listened there.
	spec := register(t, other, "vol-1", s.uri("x"))
	_, err = own.Size(t.Context(), spec)
	wantKind(t, err, errs.Conflict, "volume vol-1", "this server itself")
	_, err = other.Probe(t.Context(), "nbd://127.0.0.1:"+port+"/x")
	ok(t, err)
}

// What needs another user or another network to happen.
func TestProbeFailures(t *testing.T) {
	socket := place{uri: nbd.URI{Network: "unix", Address: "/s"}}
	host := place{uri: nbd.URI{Network: "tcp", Address: "other:10809", Export: "x"}}
	wantKind(t, probeFailure(socket, os.NewSyscallError("connect", syscall.EACCES)), errs.Denied, "change its permissions", "%2Fs")
	wantKind(t, probeFailure(host, &net.DNSError{IsNotFound: true}), errs.NotFound, "correct the URI", "nbd://other:10809/x")
	wantKind(t, probeFailure(host, &net.DNSError{IsTemporary: true}), errs.Unavailable, "does not answer", "nbd://other:10809/x")
}

// A volume's row that cannot be is our fault, and says which one it is.
func TestLocateRefuses(t *testing.T) {
	const path, identity = "nbd://h:1/x", "nbd:nbd://h:1/x"
	for name, s := range map[string]volume.Spec{
		"no id":          {ID: "", Path: path, Identity: identity},
		"a path as id":   {ID: "../x", Path: path, Identity: identity},
		"no URI":         {ID: "vol-1", Path: "/dev/sda", Identity: "file:1:2"},
		"other identity": {ID: "vol-1", Path: path, Identity: identity + "y"},
	} {
		if _, err := locate(s); errs.KindOf(err) != errs.Internal {
			t.Errorf("%s: %v", name, err)
		}
	}
}

package nbd

import (
	"strings"
	"testing"

	"cairn/internal/errs"
)

func TestParseURI(t *testing.T) {
	long := strings.Repeat("x", maxStringLen)
	good := map[string]URI{
		"nbd://host":                           {"tcp", "host:10809", ""},
		"nbd://host/":                          {"tcp", "host:10809", ""},
		"NBD://host/vol":                       {"tcp", "host:10809", "vol"},
		"nbd://127.0.0.1:1/a/b":                {"tcp", "127.0.0.1:1", "a/b"},
		"nbd://[::1]:10810//v":                 {"tcp", "[::1]:10810", "/v"},
		"nbd://[fe80::1%25eth0]/v":             {"tcp", "[fe80::1%eth0]:10809", "v"},
		"nbd://h/a%20%23%3f%2F":                {"tcp", "h:10809", "a #?/"},
		"nbd://h/" + long:                      {"tcp", "h:10809", long},
		"nbd+unix:///vol?socket=/run/s":        {"unix", "/run/s", "vol"},
		"nbd+unix:///?socket=/run/s":           {"unix", "/run/s", ""},
		"nbd+unix://?socket=/run/s":            {"unix", "/run/s", ""},
		"nbd+unix:///v?socket=%2Frun%2Fa%20b":  {"unix", "/run/a b", "v"},
		"nbd+unix:////v?socket=/" + long[:106]: {"unix", "/" + long[:106], "/v"},
	}
	for s, want := range good {
		got, err := ParseURI(s)
		if err != nil || got != want {
			t.Errorf("%.80s: %+v, %v", s, got, err)
			continue
		}
		if again, err := ParseURI(got.String()); err != nil || again != got {
			t.Errorf("%.80s: as a string %.80s: %+v, %v", s, got.String(), again, err)
		}
	}
	bad := map[string]string{
		"":                                     "begins with nbd://",
		"host":                                 "begins with",
		"http://host/v":                        "begins with",
		"nbds://host/v":                        "TLS",
		"nbds+unix:///v?socket=/s":             "TLS",
		"nbd+ssh://host/v":                     "begins with",
		"nbd+vsock://2/v":                      "begins with",
		"nbd:host:10809":                       "two slashes",
		"nbd:///v":                             "no host",
		"nbd://:10809/v":                       "no host",
		"nbd://h:/v":                           "no port",
		"nbd://h:0/v":                          "not possible",
		"nbd://h:65536/v":                      "not possible",
		"nbd://h:http/v":                       "no NBD URI",
		"nbd://::1":                            "brackets",
		"nbd://[x]/v":                          "no NBD URI",
		"nbd://me@h/v":                         "no user",
		"nbd://me:secret@h/v":                  "no user",
		"nbd://h/v#f":                          "fragment",
		"nbd://h/v#":                           "",
		"nbd://h/v?socket=/s":                  "parameter",
		"nbd://h/v?tls-certificates=/x":        "parameter",
		"nbd://h/v%00w":                        "NUL",
		"nbd://h/v%ff":                         "UTF-8",
		"nbd://h/v%zz":                         "no NBD URI",
		"nbd://h/" + long + "x":                "longer",
		"nbd+unix:///v":                        "names its socket",
		"nbd+unix:///v?socket=":                "absolute",
		"nbd+unix:///v?socket=s":               "absolute",
		"nbd+unix:///v?socket=/s&socket=/s":    "once",
		"nbd+unix:///v?socket=/s&x=1":          "parameter",
		"nbd+unix:///v?socket=/s;x=1":          "percent-encode",
		"nbd+unix://host/v?socket=/s":          "three slashes",
		"nbd+unix:///v?socket=/a%00b":          "absolute",
		"nbd+unix:///v?socket=/" + long[:107]:  "at most 107",
		"nbd+unix:v?socket=/s":                 "two slashes",
		"nbd+unix:///v?socket=/s&tls-hostname": "parameter",
	}
	for s, want := range bad {
		got, err := ParseURI(s)
		if !errs.Is(err, errs.Invalid) || !strings.Contains(errs.Message(err), want) {
			t.Errorf("%.80s: %+v, %v; want an error with %q", s, got, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
}

func FuzzURI(f *testing.F) {
	for _, s := range []string{"nbd://h:1/v", "nbd+unix:///v?socket=/s", "nbd://[::1%25a]/x%20", "nbd+unix:////a?socket=/b%20c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseURI(s)
		if err != nil {
			if !errs.Is(err, errs.Invalid) {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		again, err := ParseURI(u.String())
		if err != nil || again != u {
			t.Fatalf("%q is %+v, as a string %q, which is %+v, %v", s, u, u.String(), again, err)
		}
	})
}

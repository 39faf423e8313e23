package fake_test

import (
	"fmt"
	"testing"

	"cairn/internal/compute"
	"cairn/internal/compute/computetest"
	"cairn/internal/compute/fake"
	"cairn/internal/errs"
)

func TestSuite(t *testing.T) {
	computetest.Run(t, func(*testing.T) computetest.Harness {
		const none = "nbd+unix:///none?socket=/none"
		h := &fake.Host{Open: func(_ string, d compute.Disk) error {
			if d.URI == none {
				return errs.New(errs.Unavailable, "there is no disk %s", d.ID)
			}
			return nil
		}}
		return computetest.Harness{
			Driver: fake.New(h),
			Again:  func(*testing.T) compute.Driver { return fake.New(h) },
			Disk: func(_ *testing.T, id string) compute.Disk {
				return compute.Disk{ID: id, URI: "nbd+unix:///" + id + "?socket=/s"}
			},
			NoDisk: compute.Disk{ID: "vol-NONE", URI: none},
		}
	})
}

func TestForeignSuite(t *testing.T) {
	computetest.RunForeign(t, func(*testing.T) computetest.Foreign {
		h := &fake.Host{}
		m := compute.Spec{ID: "ins-THEIRS", Name: "theirs", CPUs: 1, Memory: 32 << 20, Disks: []compute.Disk{{ID: "ins-THEIRS", URI: "libvirt:/a", Device: "vda"}}}
		h.AddForeign(m)
		return computetest.Foreign{
			Driver:  fake.New(h),
			Again:   func(*testing.T) compute.Driver { return fake.New(h) },
			Machine: m,
			Kept: func(t *testing.T) string {
				m, err := fake.New(h).Describe(t.Context(), m.ID)
				if err != nil {
					t.Fatal(err)
				}
				return fmt.Sprint(m.Spec)
			},
			Remove: func(*testing.T) { h.RemoveForeign(m.ID) },
		}
	})
}

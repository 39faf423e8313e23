package libvirt

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/xml"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	rpc "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"cairn/internal/errs"
)

// Domain is a machine of libvirt's as it is described.
type Domain struct {
	UUID   uuid.UUID
	Name   string
	State  rpc.DomainState
	Active bool // something of the hypervisor has its disks open
	// Persistent domains are still there when they have ended.
	Persistent bool
	CPUs       int
	Memory     int64 // bytes
	Disks      []Disk
	Agent      bool // it has the channel of the guest agent
	// AgentListens says that something in the guest has that channel open.
	AgentListens bool
}

// Disk is one that a guest may write to. CD-ROMs and floppies are none.
type Disk struct {
	Target string // vda; there is one of each in a domain
	Serial string // as the guest sees it; may be empty
	Path   string // of a file or a device
	Format string // raw, qcow2
	// Problem is why Cairn cannot read the disk, a sentence's end; "": it can.
	Problem string
}

// Handle is the domain as calls name it.
func (d Domain) Handle() rpc.Domain {
	return rpc.Domain{Name: d.Name, UUID: rpc.UUID(d.UUID), ID: -1}
}

// InstanceID is the id under which Cairn knows a domain: the same wherever and
// whenever it is asked.
func (d Domain) InstanceID() string { return stableID("ins", d.UUID, "") }

// VolumeID is the id of one of its disks, which is the slot that it is in: what
// file lies there may change, as it does when libvirt takes a snapshot.
func (d Domain) VolumeID(k Disk) string { return stableID("vol", d.UUID, k.Target) }

// DiskScheme begins what DiskPath gives.
const DiskScheme = "libvirt:"

// DiskPath names the slot of one of its disks for good: libvirt:UUID/vda.
func (d Domain) DiskPath(k Disk) string { return DiskScheme + d.UUID.String() + "/" + k.Target }

// stableID has the form of ids that are drawn: a prefix, and eight letters and
// digits, here of a hash. 36^8 of them: among 10,000 domains two are alike once
// in 56,000 hosts, and then one of them is refused by name.
func stableID(prefix string, of uuid.UUID, slot string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	h := sha256.Sum256(append(of[:], prefix+"/"+slot...))
	n := binary.BigEndian.Uint64(h[:])
	id := []byte(prefix + "-")
	for range 8 {
		id = append(id, alphabet[n%uint64(len(alphabet))])
		n /= uint64(len(alphabet))
	}
	return string(id)
}

// askLimit is how long the daemon may take to describe its domains: one that hangs
// must not hang all who ask.
const askLimit = 20 * time.Second

// Domains is all domains, by name. errs.Unavailable: also if the daemon hangs.
func (d Daemon) Domains(ctx context.Context) ([]Domain, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, askLimit, errs.New(errs.Unavailable, "libvirt at %s hangs; restart libvirtd", d.socket))
	defer cancel()
	var out []Domain
	err := d.Do(ctx, func(l *rpc.Libvirt) error {
		all, _, err := l.ConnectListAllDomains(1, rpc.ConnectListDomainsActive|rpc.ConnectListDomainsInactive)
		if err != nil {
			return err
		}
		for _, one := range all {
			dom, err := describe(l, one)
			if rpc.IsNotFound(err) {
				continue // it is gone since
			}
			if err != nil {
				return err
			}
			out = append(out, dom)
		}
		return nil
	})
	slices.SortFunc(out, func(a, b Domain) int { return cmp.Compare(a.Name, b.Name) })
	nameShared(out)
	return out, err
}

// nameShared makes it a problem of a disk that another domain's disk, or another
// one of its own, lies in the same file: what one writes is the other's, too.
func nameShared(all []Domain) {
	type user struct {
		dom  *Domain
		disk *Disk
	}
	users := map[string][]user{}
	for i := range all {
		for n := range all[i].Disks {
			k := &all[i].Disks[n]
			if k.Path == "" {
				continue
			}
			real, err := filepath.EvalSymlinks(k.Path)
			if err != nil {
				real = filepath.Clean(k.Path) // it may not be there now
			}
			users[real] = append(users[real], user{&all[i], k})
		}
	}
	for _, of := range users {
		for i, u := range of {
			if other := of[(i+1)%len(of)]; len(of) > 1 && u.disk.Problem == "" {
				u.disk.Problem = fmt.Sprintf("lies in %s, as does disk %s of domain %s", u.disk.Path, other.disk.Target, other.dom.Name)
			}
		}
	}
}

// Defined is a domain as its next start will make it.
func (d Daemon) Defined(ctx context.Context, dom Domain) (next Domain, err error) {
	err = d.Do(ctx, func(l *rpc.Libvirt) error {
		text, err := l.DomainGetXMLDesc(dom.Handle(), rpc.DomainXMLInactive)
		if err != nil {
			return err
		}
		next, err = parseDomain(text)
		return err
	})
	return next, err
}

// describe asks for one domain as it is now.
func describe(l *rpc.Libvirt, one rpc.Domain) (Domain, error) {
	state, _, err := l.DomainGetState(one, 0)
	if err != nil {
		return Domain{}, err
	}
	persistent, err := l.DomainIsPersistent(one)
	if err != nil {
		return Domain{}, err
	}
	active, err := l.DomainIsActive(one)
	if err != nil {
		return Domain{}, err
	}
	text, err := l.DomainGetXMLDesc(one, 0)
	if err != nil {
		return Domain{}, err
	}
	dom, err := parseDomain(text)
	dom.State, dom.Persistent, dom.Active = rpc.DomainState(state), persistent == 1, active == 1
	return dom, err
}

// Find is the domain of an instance's id. errs.NotFound: there is none;
// errs.Conflict: there are two.
func (d Daemon) Find(ctx context.Context, id string) (Domain, error) {
	all, err := d.Domains(ctx)
	if err != nil {
		return Domain{}, err
	}
	var found []Domain
	for _, dom := range all {
		if dom.InstanceID() == id {
			found = append(found, dom)
		}
	}
	switch len(found) {
	case 0:
		return Domain{}, errs.New(errs.NotFound, "libvirt has no domain that is instance %s", id)
	case 1:
		return found[0], nil
	}
	return Domain{}, errs.New(errs.Conflict, "the domains %s and %s would both be instance %s; give one of them another UUID", found[0].Name, found[1].Name, id)
}

// domainXML is what is read of a domain's description.
// https://libvirt.org/formatdomain.html
type domainXML struct {
	UUID   string `xml:"uuid"`
	Name   string `xml:"name"`
	VCPU   string `xml:"vcpu"`
	Memory struct {
		Unit  string `xml:"unit,attr"`
		Value int64  `xml:",chardata"`
	} `xml:"memory"`
	Disks    []diskXML `xml:"devices>disk"`
	Channels []struct {
		Target struct {
			Name  string `xml:"name,attr"`
			State string `xml:"state,attr"`
		} `xml:"target"`
	} `xml:"devices>channel"`
}

type diskXML struct {
	Type   string `xml:"type,attr"`
	Device string `xml:"device,attr"`
	Driver struct {
		Type string `xml:"type,attr"`
	} `xml:"driver"`
	Source struct {
		File  string `xml:"file,attr"`
		Dev   string `xml:"dev,attr"`
		Slice *struct {
			Type string `xml:"type,attr"`
		} `xml:"slices>slice"`
		Encryption *struct{} `xml:"encryption"`
	} `xml:"source"`
	Target struct {
		Dev string `xml:"dev,attr"`
	} `xml:"target"`
	Serial     string    `xml:"serial"`
	ReadOnly   *struct{} `xml:"readonly"`
	Shareable  *struct{} `xml:"shareable"`
	Transient  *struct{} `xml:"transient"`
	Encryption *struct{} `xml:"encryption"`
}

// memoryUnits are bytes of what libvirt writes; it writes KiB.
var memoryUnits = map[string]int64{"": 1 << 10, "b": 1, "bytes": 1, "KB": 1000, "k": 1 << 10, "KiB": 1 << 10, "M": 1 << 20, "MiB": 1 << 20, "G": 1 << 30, "GiB": 1 << 30}

func parseDomain(text string) (Domain, error) {
	var x domainXML
	if err := xml.Unmarshal([]byte(text), &x); err != nil {
		return Domain{}, errs.Wrap(errs.Unavailable, err, "libvirt describes a domain in a way that cannot be read")
	}
	id, err := uuid.Parse(x.UUID)
	if err != nil {
		return Domain{}, errs.Wrap(errs.Unavailable, err, "libvirt's domain %q has no UUID", x.Name)
	}
	d := Domain{UUID: id, Name: x.Name, Memory: x.Memory.Value * memoryUnits[x.Memory.Unit]}
	if d.CPUs, err = strconv.Atoi(x.VCPU); err != nil || memoryUnits[x.Memory.Unit] == 0 {
		return Domain{}, errs.New(errs.Unavailable, "libvirt's domain %s has %q processors and a memory of %d %s, which cannot be read", x.Name, x.VCPU, x.Memory.Value, x.Memory.Unit)
	}
	for _, c := range x.Channels {
		if c.Target.Name == "org.qemu.guest_agent.0" {
			d.Agent, d.AgentListens = true, c.Target.State == "connected"
		}
	}
	for _, k := range x.Disks {
		if k.Device == "cdrom" || k.Device == "floppy" {
			continue
		}
		disk := Disk{Target: k.Target.Dev, Serial: k.Serial, Path: cmp.Or(k.Source.File, k.Source.Dev), Format: cmp.Or(k.Driver.Type, "raw"), Problem: k.problem()}
		if other := d.serial(k.Serial); disk.Problem == "" && other != "" {
			disk.Problem = "has the same serial number as " + other + ", so the guest cannot tell them apart"
		}
		d.Disks = append(d.Disks, disk)
	}
	return d, nil
}

// serial is the target of the disk that has a serial number; "": none.
func (d Domain) serial(n string) string {
	for _, k := range d.Disks {
		if n != "" && k.Serial == n {
			return k.Target
		}
	}
	return ""
}

// problem is why a disk cannot be read.
func (k diskXML) problem() string {
	switch {
	case k.Device != "" && k.Device != "disk":
		return "is a " + k.Device + ", which the guest has to itself"
	case k.Type != "file" && k.Type != "block":
		return "lies in a " + k.Type + ", not in a file or a device of this machine"
	case k.Source.File == "" && k.Source.Dev == "":
		return "has no medium"
	case k.Driver.Type != "" && k.Driver.Type != "raw" && k.Driver.Type != "qcow2":
		return "has the format " + k.Driver.Type + "; raw and qcow2 can be read"
	case k.Source.Slice != nil:
		return "is a slice of its file"
	case k.Encryption != nil || k.Source.Encryption != nil:
		return "is encrypted by libvirt"
	case k.Transient != nil:
		return "is transient: what is written to it is thrown away"
	case k.Shareable != nil:
		return "is shared with other machines, so a point of one of them would be no moment"
	case k.ReadOnly != nil:
		return "is read-only"
	}
	return ""
}

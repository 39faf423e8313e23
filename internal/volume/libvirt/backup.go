package virtvolume

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/xml"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	rpc "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"cairn/internal/errs"
	"cairn/internal/libvirt"
	"cairn/internal/volume"
)

// backup is a pull-mode backup of some disks of one running domain: QEMU serves
// them over NBD as they were when it began, and keeps what guests overwrite in
// scratch files. https://libvirt.org/formatbackup.html
// Of a domain that is stopped it is a qemu-nbd for each disk, and nobody writes.
type backup struct {
	d       *Driver
	in      *instant
	dom     libvirt.Domain
	dir     string // of its socket and scratch files
	mark    string // the checkpoint that begins with it
	sources []*source
	marked  bool // the checkpoint was made
	begun   bool
	paused  bool // by us, and not yet told to go on
}

const (
	// socketRoom is how long a socket's path can be.
	socketRoom = 107
	// socketRest is of that what comes after the driver's folder:
	// /holds/, 8 of a hold's, / and 22 of a domain's, and /sdzz.nbd.
	socketRest = 7 + 8 + 1 + 22 + 9
	// callLimit is for what must not be given up halfway: libvirt itself waits half
	// a minute for a machine that somebody else changes.
	callLimit = time.Minute
)

// prefix begins the paths of all disks of the machine.
func (b *backup) prefix() string { return prefixOf(b.dom.UUID) }

func prefixOf(id uuid.UUID) string { return libvirt.DiskScheme + id.String() + "/" }

func (b *backup) socket() string { return filepath.Join(b.dir, "nbd") }

type (
	backupXML struct {
		XMLName xml.Name    `xml:"domainbackup"`
		Mode    string      `xml:"mode,attr"`
		Server  serverXML   `xml:"server"`
		Disks   []wantedXML `xml:"disks>disk"`
	}
	serverXML struct {
		Transport string `xml:"transport,attr"`
		Socket    string `xml:"socket,attr"`
	}
	wantedXML struct {
		Name         string      `xml:"name,attr"`
		Backup       string      `xml:"backup,attr,omitempty"`
		Type         string      `xml:"type,attr,omitempty"`
		Mode         string      `xml:"backupmode,attr,omitempty"`
		Incremental  string      `xml:"incremental,attr,omitempty"`
		ExportName   string      `xml:"exportname,attr,omitempty"`
		ExportBitmap string      `xml:"exportbitmap,attr,omitempty"`
		Scratch      *scratchXML `xml:"scratch"`
	}
	scratchXML struct {
		File string `xml:"file,attr"`
	}
	checkpointXML struct {
		XMLName xml.Name    `xml:"domaincheckpoint"`
		Name    string      `xml:"name"`
		Disks   []markedXML `xml:"disks>disk"`
	}
	markedXML struct {
		Name       string `xml:"name,attr"`
		Checkpoint string `xml:"checkpoint,attr"`
	}
)

// descriptions of the backup and of the checkpoint that begins with it; the
// latter is empty if no disk can have one. Disks that are not wanted are named,
// so that nothing is done to them.
func (b *backup) descriptions() (backup, checkpoint string, err error) {
	x := backupXML{Mode: "pull", Server: serverXML{"unix", b.socket()}}
	c := checkpointXML{Name: b.mark}
	one := false
	for _, k := range b.dom.Disks {
		s := b.source(k.Target)
		if s == nil {
			x.Disks = append(x.Disks, wantedXML{Name: k.Target, Backup: "no"})
			c.Disks = append(c.Disks, markedXML{k.Target, "no"})
			continue
		}
		w := wantedXML{Name: k.Target, Backup: "yes", Type: "file", ExportName: k.Target, Scratch: &scratchXML{b.scratch(k.Target)}}
		if s.since.Mark != "" {
			w.Mode, w.Incremental, w.ExportBitmap = "incremental", s.since.Mark, k.Target
		}
		x.Disks = append(x.Disks, w)
		if tracked(k) {
			one = true
			c.Disks = append(c.Disks, markedXML{k.Target, "bitmap"})
		} else {
			c.Disks = append(c.Disks, markedXML{k.Target, "no"})
		}
	}
	bx, err := xml.Marshal(x)
	if err != nil || !one {
		return string(bx), "", err
	}
	cx, err := xml.Marshal(c)
	return string(bx), string(cx), err
}

// source is the one of a disk; nil: it is not wanted.
func (b *backup) source(target string) *source {
	for _, s := range b.sources {
		if s.at.target == target {
			return s
		}
	}
	return nil
}

// begin starts the backup. Bitmaps that libvirt does not vouch for are given up,
// all of this domain's: then everything is read.
func (b *backup) begin(ctx context.Context) error {
	if !b.dom.Active {
		return b.serve(ctx)
	}
	err := b.tryBegin(ctx)
	if !inconsistent(err) {
		return err
	}
	b.d.log.Info("libvirt does not vouch for the dirty bitmaps of a machine; everything is read", "machine", b.dom.Name, "error", err)
	for _, s := range b.sources {
		s.since.Mark = ""
	}
	if err := b.d.dropMarks(ctx, b.dom, nil); err != nil {
		return err
	}
	return b.tryBegin(ctx)
}

// serve opens the disks of a stopped machine. Where they changed is not asked:
// the bitmaps in their files are libvirt's to read.
func (b *backup) serve(ctx context.Context) error {
	keep, err := b.d.marksOf(b.prefix())
	if err != nil {
		return err
	}
	for _, s := range b.sources {
		k, err := s.at.disk(b.dom)
		if err != nil {
			return err
		}
		if err := b.d.dropBitmaps(ctx, k, keep); err != nil { // of jobs that were cut
			return err
		}
		s.disk = k
		if s.print, err = printOf(k.Path); err != nil {
			return errs.Wrap(errs.Unavailable, err, "volume %s: its disk %s cannot be found; see the server's log", s.at.id, s.at.target)
		}
		if s.srv, err = b.d.serve(ctx, s.at, k, b.dir, false); err != nil {
			return err
		}
	}
	return nil
}

// untouched fails if a stopped machine's disks may have been written to.
func (b *backup) untouched(ctx context.Context) error {
	now, err := b.d.domain(ctx, b.sources[0].at)
	if err != nil {
		return err
	}
	for _, s := range b.sources {
		k, err := s.at.disk(now)
		if err != nil {
			return err
		}
		print, err := printOf(k.Path)
		if err != nil || now.Active || print != s.print {
			return errs.Wrap(errs.Conflict, errors.Join(volume.ErrChanged, err), "volume %s: domain %s was started or its disk %s changed while it was read; take the snapshot again", s.at.id, b.dom.Name, s.at.target)
		}
	}
	return nil
}

func inconsistent(err error) bool {
	var said rpc.Error
	return errors.As(err, &said) && (said.Code == uint32(rpc.ErrCheckpointInconsistent) || said.Code == uint32(rpc.ErrNoDomainCheckpoint))
}

func (b *backup) tryBegin(ctx context.Context) error {
	bx, cx, err := b.descriptions()
	if err != nil {
		return err
	}
	var checkpoint rpc.OptString
	if cx != "" {
		checkpoint = rpc.OptString{cx}
	}
	// A call that is given up may be carried out all the same, after whoever gave
	// it up has looked.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callLimit)
	defer cancel()
	b.begun, b.marked = true, cx != ""
	return b.d.cfg.Daemon.Do(ctx, func(l *rpc.Libvirt) error {
		return l.DomainBackupBegin(b.dom.Handle(), bx, checkpoint, 0)
	})
}

// running fails if the backup has ended, whoever ended it.
func (b *backup) running(ctx context.Context) error {
	if !b.dom.Active {
		return b.untouched(ctx)
	}
	text, err := b.d.backupOf(ctx, b.dom)
	if err == nil && !strings.Contains(text, b.dir+"/") {
		err = errs.New(errs.Unavailable, "the backup of domain %s ended before its point was read: the machine was stopped or the backup was; take the snapshot again", b.dom.Name)
	}
	return err
}

// backupOf is the description of the backup that a domain has; "": none.
func (d *Driver) backupOf(ctx context.Context, dom libvirt.Domain) (text string, err error) {
	err = d.cfg.Daemon.Do(ctx, func(l *rpc.Libvirt) (err error) {
		text, err = l.DomainBackupGetXMLDesc(dom.Handle(), 0)
		return err
	})
	if errs.Is(err, errs.NotFound) || errs.Is(err, errs.Conflict) { // it has ended, or its machine has
		return "", nil
	}
	return text, err
}

// end stops the backup. The checkpoint stays, unless forget: then changes since
// count to the one before. If it fails the folder stays, for Drop to try again.
func (b *backup) end(ctx context.Context, forget bool) error {
	err := b.resume(ctx)
	for _, s := range b.sources {
		if s.srv != nil {
			err = errors.Join(err, s.srv.close())
		}
	}
	if b.begun {
		b.begun = false
		err = errors.Join(err, b.d.abort(ctx, b.dom, b.dir))
	}
	if b.marked && forget {
		b.marked = false
		err = errors.Join(err, b.d.dropMark(ctx, b.dom, b.mark))
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(b.dir)
}

// abortWait is how long a machine may take to end a backup that it was told to.
const abortWait = 20 * time.Second

// abort ends the backup of a domain that serves from dir, and waits for that;
// another's is left.
func (d *Driver) abort(ctx context.Context, dom libvirt.Domain, dir string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, abortWait, errs.New(errs.Unavailable, "domain %s did not end its backup; virsh domjobabort may", dom.Name))
	defer cancel()
	for told := false; ; {
		text, err := d.backupOf(ctx, dom)
		if err != nil || !strings.Contains(text, dir+"/") {
			return err
		}
		if !told {
			err := d.cfg.Daemon.Do(ctx, func(l *rpc.Libvirt) error { return l.DomainAbortJobFlags(dom.Handle(), 0) })
			if err != nil && !errs.Is(err, errs.NotFound) && !errs.Is(err, errs.Conflict) {
				return err
			}
			told = true
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// dropMark removes one of a domain's checkpoints with its bitmaps; one whose
// bitmaps are lost, what libvirt knows of it.
func (d *Driver) dropMark(ctx context.Context, dom libvirt.Domain, mark string) error {
	err := d.cfg.Daemon.Do(ctx, func(l *rpc.Libvirt) error {
		c := rpc.DomainCheckpoint{Name: mark, Dom: dom.Handle()}
		err := l.DomainCheckpointDelete(c, 0)
		var said rpc.Error
		if err == nil || !errors.As(err, &said) || said.Code == uint32(rpc.ErrNoDomainCheckpoint) {
			return err
		}
		return l.DomainCheckpointDelete(c, rpc.DomainCheckpointDeleteMetadataOnly)
	})
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

// dropMarks removes all checkpoints of this driver's that are not to be kept.
func (d *Driver) dropMarks(ctx context.Context, dom libvirt.Domain, keep map[string]bool) error {
	var names []string
	err := d.cfg.Daemon.Do(ctx, func(l *rpc.Libvirt) error {
		all, _, err := l.DomainListAllCheckpoints(dom.Handle(), 1, 0)
		for _, c := range all {
			names = append(names, c.Name)
		}
		return err
	})
	for _, name := range names {
		if err == nil && strings.HasPrefix(name, d.markPrefix()) && !keep[name] {
			err = d.dropMark(ctx, dom, name)
		}
	}
	return err
}

// markPrefix begins the names of all checkpoints that are this driver's.
func (d *Driver) markPrefix() string { return "cairn-" + d.tag + "-" }

// mark is the name of the checkpoint of a domain in a hold: no other domain's
// files have bitmaps of that name.
func (d *Driver) mark(hold string, id uuid.UUID) string {
	sum := sha256.Sum256(append(id[:], hold...))
	return d.markPrefix() + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:15]))
}

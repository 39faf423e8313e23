package service

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"cairn/internal/chain"
	"cairn/internal/errs"
	"cairn/internal/job"
	"cairn/internal/volume"
)

// What a caller may send.
const (
	maxNameRunes        = 255
	maxDescriptionRunes = 1000
	maxPerCall          = 1000    // resources or ids in one call
	maxVolumeBytes      = 1 << 50 // 1 PiB
	maxVolumesPerCall   = 100
)

// Prefixes of ids.
const (
	snapshotPrefix = "ss-"
	volumePrefix   = "vol-"
	instancePrefix = "ins-"
	imagePrefix    = "img-"
)

// Values of resource_type.
const (
	resourceVolume   = "volume"
	resourceInstance = "instance"
	// ResourceImage is the type of points that are images.
	ResourceImage = "image"
)

// IsInstance reports whether an id is a machine's, or its system disk's.
func IsInstance(id string) bool { return strings.HasPrefix(id, instancePrefix) }

// IsImage reports whether an id is an image's.
func IsImage(id string) bool { return strings.HasPrefix(id, imagePrefix) }

// Noun is what an id names, for people.
func Noun(id string) string {
	switch {
	case IsInstance(id):
		return "instance"
	case IsImage(id):
		return "image"
	case strings.HasPrefix(id, snapshotPrefix):
		return "snapshot"
	}
	return "volume"
}

// named is an object for people.
func named(id string) string { return Noun(id) + " " + id }

func newUUID() string { return uuid.NewString() }

// newID makes an id that cannot be guessed: prefix and 8 of 36 characters.
func newID(prefix string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	id := []byte(prefix)
	var b [1]byte
	for len(id) < len(prefix)+8 {
		_, _ = rand.Read(b[:]) // never fails
		if int(b[0]) < 256/len(alphabet)*len(alphabet) {
			id = append(id, alphabet[int(b[0])%len(alphabet)])
		}
	}
	return string(id)
}

func (s *Service) checkZone(zone string) error {
	if !s.zones[zone] {
		return errs.New(errs.NotFound, "zone %s is not known here; use one of the configured zones", clip(zone))
	}
	return nil
}

// clip keeps a caller's text from filling a message.
func clip(text string) string {
	const most = 64
	if r := []rune(text); len(r) > most {
		text = string(r[:most]) + "…"
	}
	return fmt.Sprintf("%q", text)
}

func checkName(field, name string) error {
	if strings.TrimSpace(name) == "" {
		return errs.New(errs.Invalid, "%s is empty; give a name of 1 to %d characters", field, maxNameRunes)
	}
	return checkText(field, name, maxNameRunes)
}

func checkText(field, text string, most int) error {
	if n := utf8.RuneCountInString(text); n > most {
		return errs.New(errs.Invalid, "%s has %d characters; at most %d are allowed", field, n, most)
	}
	if !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
		return errs.New(errs.Invalid, "%s holds control characters or is not UTF-8; use plain text", field)
	}
	return nil
}

// checkIDs drops duplicates and refuses empty lists and ids of another kind.
func checkIDs(kind, prefix string, ids []string) ([]string, error) {
	var out []string
	seen := map[string]bool{}
	for _, id := range ids {
		if seen[id] {
			continue
		}
		seen[id] = true
		out = append(out, id)
		if strings.HasPrefix(id, prefix) {
			continue
		}
		for other, name := range map[string]string{
			snapshotPrefix: "a snapshot", volumePrefix: "a volume", instancePrefix: "an instance", imagePrefix: "an image",
		} {
			if strings.HasPrefix(id, other) {
				return nil, errs.New(errs.Invalid, "%s is the id of %s; this call takes ids of %ss (%s…)", clip(id), name, kind, prefix)
			}
		}
		return nil, errs.New(errs.NotFound, "%s %s does not exist", kind, clip(id))
	}
	switch {
	case len(out) == 0:
		return nil, errs.New(errs.Invalid, "no %s is named; give at least one id", kind)
	case len(out) > maxPerCall:
		return nil, errs.New(errs.Invalid, "%d %ss are named; at most %d go into one call", len(out), kind, maxPerCall)
	}
	return out, nil
}

// doing words what an action does to the object that is locked for it.
var doing = map[job.Action]string{
	job.CreateSnapshots:          "creating a snapshot",
	job.DeleteSnapshots:          "deleting",
	job.ApplySnapshots:           "applying a snapshot",
	job.CreateVolumeFromSnapshot: "creating",
	job.CreateVolume:             "creating",
	job.DeleteVolumes:            "deleting",
	job.ResizeVolumes:            "resizing",
	job.ImportVolume:             "importing",
	job.ScrubRepository:          "being scrubbed",
	job.PruneRepository:          "being pruned",
	job.LeaseResources:           "being brought back",
	job.RunInstances:             "being created",
	job.StartInstances:           "starting",
	job.StopInstances:            "stopping",
	job.RestartInstances:         "restarting",
	job.TerminateInstances:       "deleting",
	job.AttachVolumes:            "getting a volume attached",
	job.DetachVolumes:            "getting a volume detached",
	job.ImportImage:              "importing",
	job.DeleteImages:             "deleting",

	job.CaptureInstanceFromSnapshot: "creating",
}

// refuseLocked answers errs.Busy if somebody has the object; what names it.
func refuseLocked(tx Tx, what, id string) error {
	holder, ok, err := tx.LockedBy(id)
	if err != nil || !ok {
		return err
	}
	j, err := tx.Job(holder)
	switch {
	case errs.Is(err, errs.NotFound):
		return errs.New(errs.Busy, "%s is being exported; please try later", what)
	case err != nil:
		return err
	}
	return errs.New(errs.Busy, "%s is %s (job %s); please try later", what, doing[j.Action], j.ID)
}

// hasContent reports whether the volume is made and not gone.
func (v Volume) hasContent() bool { return v.Status == VolumeAvailable || v.Status == VolumeInUse }

// idleVolume is the volume, attached or not, if nobody works on it. A volume
// that holds a mixture passes: see usableVolume.
func idleVolume(tx Tx, zone, id string) (Volume, error) {
	v, err := tx.Volume(zone, id)
	if err != nil {
		return v, err
	}
	if v.Transition != "" {
		return v, errs.New(errs.Busy, "%s is %s; please try later", named(id), v.Transition)
	}
	if !v.hasContent() {
		return v, errs.New(errs.Conflict, "%s is %s; this needs an available one", named(id), v.Status)
	}
	return v, refuseLocked(tx, named(id), id)
}

// freeVolume is an idle volume that is not attached to a machine.
func freeVolume(tx Tx, zone, id, what string) (Volume, error) {
	v, err := idleVolume(tx, zone, id)
	if err == nil && v.InstanceID != "" {
		err = errs.New(errs.Conflict, "volume %s is attached to instance %s and cannot be %s; detach it first", id, v.InstanceID, what)
	}
	return v, err
}

// usableVolume is an idle volume with a content that is one moment.
func usableVolume(tx Tx, zone, id string) (Volume, error) {
	v, err := idleVolume(tx, zone, id)
	if err == nil && v.MixedJob != "" {
		err = errs.New(errs.Conflict, "%s; apply a snapshot to it again", mixture(id, v.MixedJob))
	}
	return v, err
}

func mixture(id, jobID string) string {
	return fmt.Sprintf("%s holds a mixture of two states, because job %s failed while it applied a snapshot", named(id), jobID)
}

// idlePoint is the point if it is available and in no transition.
func idlePoint(tx Tx, zone, id string) (Snapshot, error) {
	p, err := tx.Snapshot(zone, id)
	if err != nil {
		return p, err
	}
	switch {
	case p.Transition != "":
		return p, errs.New(errs.Busy, "%s is %s; please try later", named(id), p.Transition)
	case p.Status == chain.Pending:
		return p, errs.New(errs.Busy, "%s is being created; please try later", named(id))
	case p.Status != chain.Available:
		return p, errs.New(errs.Conflict, "%s is %s; this needs an available one", named(id), p.Status)
	}
	return p, refuseLocked(tx, named(id), id)
}

// restorablePoint is an idle point whose bytes are not known to be damaged.
func restorablePoint(tx Tx, zone, id string) (Snapshot, error) {
	p, err := idlePoint(tx, zone, id)
	if err == nil && p.Damaged {
		err = errs.New(errs.Conflict, "%s is damaged: a scrub found parts of it missing or wrong; use another one, or export what is left of a snapshot with salvage", named(id))
	}
	return p, err
}

// holdPrefix marks the holder of a lock that stands for a job's held instant,
// so that a crash between the job's end and the drop is not forgotten.
const holdPrefix = "hold:"

// holdOf is the name under which drivers hold the instant of a lock's holder.
func holdOf(holder string) string { return strings.TrimPrefix(holder, holdPrefix) }

// NoteHold records, until release, that drivers may hold an instant for a job.
// Of a job that is gone, the next start lets go of it.
func NoteHold(tx Tx, jobID string) error {
	return tx.Lock(holdPrefix+jobID, holdPrefix+jobID)
}

// release lets go of all that a holder locked and pinned.
func release(tx Tx, holder string) error {
	return errors.Join(tx.Unlock(holder), tx.Unpin(holder))
}

// dropHold makes every driver forget a held instant.
func (s *Service) dropHold(ctx context.Context, hold string) error {
	for name, d := range s.drivers {
		if err := d.Drop(ctx, hold); err != nil {
			return fmt.Errorf("drop hold %s of the %s volumes: %w", hold, name, err)
		}
	}
	return nil
}

// driver is the driver that serves v.
func (s *Service) driver(v Volume) (volume.Driver, error) {
	d, ok := s.drivers[v.Driver]
	if !ok {
		if v.foreign() {
			return nil, errs.New(errs.Conflict, "%s is a disk of %s, which this server was started without (--%s)", named(v.ID), v.Driver, v.Driver)
		}
		return nil, errs.New(errs.Internal, "volume %s needs the driver %q, which this server does not have", v.ID, v.Driver)
	}
	return d, nil
}

func (v Volume) spec() volume.Spec {
	return volume.Spec{ID: v.ID, Path: v.Path, Identity: v.Identity, SizeBytes: v.SizeBytes}
}

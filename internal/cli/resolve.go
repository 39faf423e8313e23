package cli

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"cairn/client"
	"cairn/internal/errs"
)

// What has the form of an id is one: it is never looked up as a name, so a
// name cannot take the place of an object that is gone.
var (
	volumeID   = regexp.MustCompile(`^vol-[0-9A-Z]{8}$`)
	instanceID = regexp.MustCompile(`^ins-[0-9A-Za-z]{8}$`)
	snapshotID = regexp.MustCompile(`^ss-[0-9A-Z]{8}$`)
)

// named is one object that a name could mean.
type named struct{ id, about string }

// pick decides which object a name means.
func pick(kind, name string, found []named) (string, error) {
	switch len(found) {
	case 1:
		return found[0].id, nil
	case 0:
		return "", errs.New(errs.NotFound, "there is no %s with the id or name %q; cairn %s list shows all", kind, name, kind)
	}
	about := make([]string, len(found))
	for i, f := range found {
		about[i] = fmt.Sprintf("%s (%s)", f.id, f.about)
	}
	return "", errs.New(errs.Invalid, "%d %ss have the name %q, say which by id: %s", len(found), kind, name, strings.Join(about, ", "))
}

// volumes turns ids and names of volumes into ids.
func (s *session) volumes(ctx context.Context, refs ...string) ([]string, error) {
	return resolve(refs, volumeID, func(name string) (string, error) {
		p, err := s.client.AllVolumes(ctx, client.VolumeFilter{Search: name})
		if err != nil {
			return "", err
		}
		var found []named
		for _, v := range p.Volumes {
			if v.Name == name {
				found = append(found, named{v.ID, formatBytes(v.SizeBytes)})
			}
		}
		return pick("volume", name, found)
	})
}

// snapshots turns ids and names of snapshots into ids.
func (s *session) snapshots(ctx context.Context, refs ...string) ([]string, error) {
	return s.snapshotsThatAre(ctx, nil, refs...)
}

// snapshotsThatAre looks names up among snapshots of the statuses only.
func (s *session) snapshotsThatAre(ctx context.Context, statuses []string, refs ...string) ([]string, error) {
	return resolve(refs, snapshotID, func(name string) (string, error) {
		p, err := s.client.AllSnapshots(ctx, client.SnapshotFilter{Search: name, Status: statuses})
		if err != nil {
			return "", err
		}
		var found []named
		for _, v := range p.Snapshots {
			if v.Name == name {
				found = append(found, named{v.ID, "of " + v.Resource.ID + " at " + dash(v.SnapshotTime.String())})
			}
		}
		return pick("snapshot", name, found)
	})
}

// resources turns volumes, and instances by id, into ids.
func (s *session) resources(ctx context.Context, refs ...string) ([]string, error) {
	return resolve(refs, instanceID, func(ref string) (string, error) {
		ids, err := s.volumes(ctx, ref)
		return strings.Join(ids, ""), err
	})
}

// resolve keeps what has the form of an id, looks the rest up, and drops what
// was named twice.
func resolve(refs []string, id *regexp.Regexp, look func(name string) (string, error)) ([]string, error) {
	ids := make([]string, 0, len(refs))
	for _, ref := range refs {
		got := ref
		if !id.MatchString(ref) {
			if ref == "" {
				return nil, errs.New(errs.Invalid, "an empty argument names nothing")
			}
			var err error
			if got, err = look(ref); err != nil {
				return nil, err
			}
		}
		if !slices.Contains(ids, got) {
			ids = append(ids, got)
		}
	}
	return ids, nil
}

// volume is volumes for one.
func (s *session) volume(ctx context.Context, ref string) (string, error) {
	ids, err := s.volumes(ctx, ref)
	return strings.Join(ids, ""), err
}

// snapshot is snapshots for one.
func (s *session) snapshot(ctx context.Context, ref string) (string, error) {
	ids, err := s.snapshots(ctx, ref)
	return strings.Join(ids, ""), err
}

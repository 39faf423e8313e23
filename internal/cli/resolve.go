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
	resourceID = regexp.MustCompile(`^(vol-[0-9A-Z]{8}|ins-[0-9A-Za-z]{8})$`)
	snapshotID = regexp.MustCompile(`^ss-[0-9A-Z]{8}$`)
	imageID    = regexp.MustCompile(`^img-[0-9A-Z]{8}$`)
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
		found, err := s.volumesNamed(ctx, name)
		if err != nil {
			return "", err
		}
		return pick("volume", name, found)
	})
}

func (s *session) volumesNamed(ctx context.Context, name string) ([]named, error) {
	p, err := s.client.AllVolumes(ctx, client.VolumeFilter{Search: name})
	var found []named
	for _, v := range p.Volumes {
		if v.Name == name {
			found = append(found, named{v.ID, formatBytes(v.SizeBytes)})
		}
	}
	return found, err
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

// instances turns ids and names of instances into ids.
func (s *session) instances(ctx context.Context, refs ...string) ([]string, error) {
	return resolve(refs, instanceID, func(name string) (string, error) {
		found, err := s.instancesNamed(ctx, name)
		if err != nil {
			return "", err
		}
		return pick("instance", name, found)
	})
}

func (s *session) instancesNamed(ctx context.Context, name string) ([]named, error) {
	p, err := s.client.AllInstances(ctx, client.InstanceFilter{Search: name})
	var found []named
	for _, i := range p.Instances {
		if i.Name == name {
			found = append(found, named{i.ID, i.Status})
		}
	}
	return found, err
}

// images turns ids and names of images into ids.
func (s *session) images(ctx context.Context, refs ...string) ([]string, error) {
	return resolve(refs, imageID, func(name string) (string, error) {
		p, err := s.client.AllImages(ctx, client.ImageFilter{Search: name})
		if err != nil {
			return "", err
		}
		var found []named
		for _, i := range p.Images {
			if i.Name == name {
				found = append(found, named{i.ID, "of " + dash(i.CreateTime.String())})
			}
		}
		return pick("image", name, found)
	})
}

// resources turns ids and names of volumes and instances into ids. A name that
// both have must be said by id.
func (s *session) resources(ctx context.Context, refs ...string) ([]string, error) {
	return resolve(refs, resourceID, func(name string) (string, error) {
		volumes, err := s.volumesNamed(ctx, name)
		if err != nil {
			return "", err
		}
		instances, err := s.instancesNamed(ctx, name)
		if err != nil {
			return "", err
		}
		if len(volumes) == 0 && len(instances) == 0 {
			return "", errs.New(errs.NotFound, "there is no volume or instance with the id or name %q; cairn volume list and cairn instance list show all", name)
		}
		return pick("resource", name, append(volumes, instances...))
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

// instance is instances for one.
func (s *session) instance(ctx context.Context, ref string) (string, error) {
	ids, err := s.instances(ctx, ref)
	return strings.Join(ids, ""), err
}

// image is images for one.
func (s *session) image(ctx context.Context, ref string) (string, error) {
	ids, err := s.images(ctx, ref)
	return strings.Join(ids, ""), err
}

// snapshot is snapshots for one.
func (s *session) snapshot(ctx context.Context, ref string) (string, error) {
	ids, err := s.snapshots(ctx, ref)
	return strings.Join(ids, ""), err
}

package virtvolume

import (
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"strings"

	"cairn/internal/errs"
	"cairn/internal/libvirt"
)

// dropBitmaps removes this driver's bitmaps that are not to be kept from the file
// of a stopped machine's disk: libvirt forgets them only, and the machine would
// keep them up for nobody.
func (d *Driver) dropBitmaps(ctx context.Context, k libvirt.Disk, keep map[string]bool) error {
	if !tracked(k) {
		return nil
	}
	info, err := qemuImg(ctx, "info", "--output=json", "-f", k.Format, fileName(k.Path))
	if err != nil {
		return err
	}
	names, err := bitmapNames(info)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, d.markPrefix()) || keep[name] {
			continue
		}
		if _, err := qemuImg(ctx, "bitmap", "--remove", "-f", k.Format, fileName(k.Path), name); err != nil {
			return err
		}
	}
	return nil
}

// bitmapNames are the names that stand in what qemu-img tells of a file.
func bitmapNames(info []byte) (names []string, err error) {
	var x imageInfo
	if err := json.Unmarshal(info, &x); err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "qemu-img describes a disk in a way that cannot be read")
	}
	for _, b := range x.Specific.Data.Bitmaps {
		names = append(names, b.Name)
	}
	return names, nil
}

type imageInfo struct {
	Specific struct {
		Data struct {
			Bitmaps []struct {
				Name string `json:"name"`
			} `json:"bitmaps"`
		} `json:"data"`
	} `json:"format-specific"`
}

func qemuImg(ctx context.Context, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, "qemu-img", args...).Output()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = errors.Join(err, errors.New(strings.TrimSpace(string(exit.Stderr))))
	}
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "qemu-img cannot examine a disk of libvirt's; see the server's log")
	}
	return out, nil
}

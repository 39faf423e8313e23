package httpapi

import "cairn/internal/service"

// This file holds the wire's objects of instances and images.

type imageRef struct {
	_         struct{} `additionalProperties:"true"`
	ImageID   string   `json:"image_id"`
	ImageName string   `json:"image_name"`
}

type attachedObject struct {
	_          struct{} `additionalProperties:"true"`
	VolumeID   string   `json:"volume_id"`
	VolumeName string   `json:"volume_name"`
	Device     string   `json:"device" example:"vdb"`
	SizeBytes  int64    `json:"size_bytes"`
}

type machineObject struct {
	_                struct{}         `additionalProperties:"true"`
	InstanceID       string           `json:"instance_id" example:"ins-ABCDEFGH"`
	InstanceName     string           `json:"instance_name"`
	Description      string           `json:"description"`
	Status           string           `json:"status" enum:"pending,running,stopped,terminated,ceased,unknown" doc:"unknown: the hypervisor that has it does not answer"`
	TransitionStatus string           `json:"transition_status"`
	CreateTime       string           `json:"create_time"`
	StatusTime       string           `json:"status_time"`
	VCPUs            int              `json:"vcpus_current"`
	Memory           int64            `json:"memory_current" doc:"MB"`
	Image            imageRef         `json:"image" doc:"what it was run from; it may be gone"`
	Size             int64            `json:"size" doc:"GB of the system disk, rounded up"`
	SizeBytes        int64            `json:"size_bytes" doc:"of the system disk, exactly"`
	Volumes          []attachedObject `json:"volumes" nullable:"false" doc:"attached, without the system disk"`
	MixedJob         string           `json:"mixed_job" doc:"id of an apply that has begun to write and has not finished: the system disk is a mixture"`
	Driver           string           `json:"driver" doc:"managed: one that this server runs; libvirt: a domain that somebody else made"`
	Zone             string           `json:"zone"`
	NBDURIs          []string         `json:"nbd_uris" nullable:"false" doc:"where the system disk is served; those of the unix socket are shown on the unix socket only"`
	MissingBytes     int64            `json:"missing_bytes" doc:"of the system disk: bytes that are still to be fetched from the repository; it is usable all the same"`
}

func newMachineObject(m service.Instance, local bool) machineObject {
	o := machineObject{
		InstanceID: m.ID, InstanceName: m.Name, Description: m.Description,
		Status: string(m.State), TransitionStatus: m.Transition,
		CreateTime: wireTime(m.CreateTime), StatusTime: wireTime(m.StatusTime),
		VCPUs: m.CPUs, Memory: m.Memory / megabyte, Image: imageRef{ImageID: m.Image, ImageName: m.ImageName},
		Size: gigabytes(m.SizeBytes), SizeBytes: m.SizeBytes, Volumes: []attachedObject{},
		MixedJob: m.MixedJob, Driver: m.Driver, Zone: m.Zone, NBDURIs: shownURIs(m.Export, local), MissingBytes: m.Export.Missing,
	}
	for _, v := range m.Volumes {
		o.Volumes = append(o.Volumes, attachedObject{VolumeID: v.ID, VolumeName: v.Name, Device: v.Device, SizeBytes: v.SizeBytes})
	}
	return o
}

type instancePage struct {
	_          struct{}        `additionalProperties:"true"`
	Instances  []machineObject `json:"instances" nullable:"false"`
	TotalCount int             `json:"total_count" doc:"matches before paging"`
}

type imageObject struct {
	_                struct{} `additionalProperties:"true"`
	ImageID          string   `json:"image_id" example:"img-ABCDEFGH"`
	ImageName        string   `json:"image_name"`
	Description      string   `json:"description"`
	Size             int64    `json:"size" doc:"GB, rounded up"`
	SizeBytes        int64    `json:"size_bytes" doc:"size, exactly"`
	AddedBytes       int64    `json:"added_bytes" doc:"bytes of the repository that it added when it was made"`
	Platform         string   `json:"platform"`
	OSFamily         string   `json:"os_family"`
	Provider         string   `json:"provider" doc:"self: made here"`
	Visibility       string   `json:"visibility" doc:"private"`
	Status           string   `json:"status" enum:"pending,available,suspended,deleted,ceased"`
	TransitionStatus string   `json:"transition_status"`
	CreateTime       string   `json:"create_time"`
	StatusTime       string   `json:"status_time"`
	Progress         float64  `json:"progress" minimum:"0" maximum:"1"`
	Damaged          int      `json:"damaged" enum:"0,1" doc:"1: a scrub or a read found bytes of it missing or wrong"`
	Origin           string   `json:"origin" doc:"what it was made of"`
	Zone             string   `json:"zone"`
}

func newImageObject(s service.SnapshotView) imageObject {
	return imageObject{
		ImageID: s.ID, ImageName: s.Name, Description: s.Description,
		Size: gigabytes(s.VirtualSize), SizeBytes: s.VirtualSize, AddedBytes: s.SizeBytes,
		// What is inside is the owner's: nothing here looks at it.
		Platform: "", OSFamily: "", Provider: "self", Visibility: "private",
		Status: string(s.Status), TransitionStatus: s.Transition,
		CreateTime: wireTime(s.CreateTime), StatusTime: wireTime(s.StatusTime), Progress: fraction(s.Progress),
		Damaged: bit(s.Damaged), Origin: s.Reason, Zone: s.Zone,
	}
}

type imagePage struct {
	_          struct{}      `additionalProperties:"true"`
	Images     []imageObject `json:"images" nullable:"false"`
	TotalCount int           `json:"total_count" doc:"matches before paging"`
}

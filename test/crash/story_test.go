package crash_test

import (
	"maps"
	"slices"
	"strconv"
	"sync"

	"cairn/internal/chain"
	"cairn/internal/job"
	"cairn/internal/service"
)

// story is what an observer outside knows: what there is for certain, and what
// was asked for whose end he has not seen.
type story struct {
	mu      sync.Mutex // guards what follows
	asked   int
	volumes map[string]*volumeFact
	points  map[string]chain.Status
	names   map[string]string // volume or snapshot → its name, where one was given anew
	open    []deed            // in the order in which they were asked for
	damage  bool              // blobs were damaged that a repair heals
}

// volumeFact is a volume that was acknowledged.
type volumeFact struct {
	key     string // on the disk
	content *image
	mixed   bool // an apply failed halfway and said so
}

// deed is something that was asked for.
type deed struct {
	request  string // its request id, by which its job is found
	what     string
	accepted bool // the job was answered
	mayFail  bool // not only a fault may make it fail
	settle   settle
}

// settle writes into the story what became of a deed. j is its job's last
// row; nil: it has none, or is no job.
type settle func(s *story, r *rows, j *job.Job)

func newStory() *story {
	return &story{volumes: map[string]*volumeFact{}, points: map[string]chain.Status{}, names: map[string]string{}}
}

func (s *story) clone() *story {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := newStory()
	for id, v := range s.volumes {
		f := *v
		c.volumes[id] = &f
	}
	c.damage, c.asked, c.points, c.names, c.open = s.damage, s.asked, maps.Clone(s.points), maps.Clone(s.names), slices.Clone(s.open)
	return c
}

// ask notes that something is about to be asked for, and names the request.
func (s *story) ask(what string, mayFail bool, settle settle) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	d := deed{request: "req-" + strconv.Itoa(s.asked), what: what, mayFail: mayFail, settle: settle}
	s.open = append(s.open, d)
	return d.request
}

// accept notes that the request was answered with a job.
func (s *story) accept(request string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.open {
		if s.open[i].request == request {
			s.open[i].accepted = true
		}
	}
}

// close settles one deed with what the rows say, and before it every earlier
// one whose job has ended: the answer of its request was lost.
func (s *story) close(request string, r *rows) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var rest []deed
	for i, d := range s.open {
		j := r.asked[d.request]
		if d.request != request && (j == nil || !j.Status.Ended()) {
			rest = append(rest, d)
			continue
		}
		d.settle(s, r, j)
		if d.request == request {
			rest = append(rest, s.open[i+1:]...)
			break
		}
	}
	s.open = rest
}

// unfinished lists the deeds that are open.
func (s *story) unfinished() []deed {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.open)
}

func good(j *job.Job) bool { return j != nil && j.Status == job.Successful }

// taken: the points of the job are there.
func taken(s *story, _ *rows, j *job.Job) {
	if good(j) {
		for _, id := range j.ResourceIDs {
			s.points[id] = chain.Available
		}
	}
}

// binned: the points of the job are in the recycle bin.
func binned(s *story, _ *rows, j *job.Job) {
	if good(j) {
		for _, id := range j.ResourceIDs {
			s.points[id] = chain.Deleted
		}
	}
}

// emptied: points that were in the recycle bin have ceased. What a prune has
// begun it need not take back.
func emptied(known []string) settle {
	return func(s *story, r *rows, j *job.Job) {
		for id, status := range s.points {
			sure := good(j) && slices.Contains(known, id)
			if status == chain.Deleted && (sure || j != nil && r.points[id].Status == chain.Ceased) {
				s.points[id] = chain.Ceased
			}
		}
	}
}

func nothing(*story, *rows, *job.Job) {}

// rolled: the volume of each point holds what the point shows.
func rolled(contents map[string]*image) settle {
	return func(s *story, r *rows, j *job.Job) {
		for id, content := range contents {
			switch v := s.volumes[id]; {
			case good(j):
				v.content, v.mixed = content.resized(v.content.size), false
			case j != nil && r.volumes[id].MixedJob == j.ID:
				v.mixed = true
			}
		}
	}
}

// made: the volumes of the job are there and hold content.
func made(content *image) settle {
	return func(s *story, _ *rows, j *job.Job) {
		if good(j) {
			for _, id := range j.ResourceIDs {
				s.volumes[id] = &volumeFact{key: id, content: content.clone()}
			}
		}
	}
}

// registered: if there is a row for the path, it is a volume with what lies
// there.
func registered(path string, content *image) settle {
	return func(s *story, r *rows, _ *job.Job) {
		for id, v := range r.volumes {
			if v.Path == path && v.Status == service.VolumeAvailable {
				s.volumes[id] = &volumeFact{key: path, content: content}
			}
		}
	}
}

// removed: the volumes are gone, those whose row says so also after a failure.
func removed(ids ...string) settle {
	return func(s *story, r *rows, j *job.Job) {
		for _, id := range ids {
			if good(j) || j != nil && r.volumes[id].Status == service.VolumeCeased {
				delete(s.volumes, id)
			}
		}
	}
}

// grown: the volumes have the size, or after a failure the one of their rows.
func grown(size int64, ids ...string) settle {
	return func(s *story, r *rows, j *job.Job) {
		for _, id := range ids {
			v := s.volumes[id]
			if good(j) {
				v.content = v.content.resized(size)
			} else if j != nil {
				v.content = v.content.resized(r.volumes[id].SizeBytes)
			}
		}
	}
}

// renamed: whatever the answer was, the row has the old name or the new one.
func renamed(id, name string) settle {
	return func(s *story, r *rows, _ *job.Job) {
		if r.volumes[id].Name == name || r.points[id].Name == name {
			s.names[id] = name
		}
	}
}

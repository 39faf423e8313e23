package collectmodel

// This file is compaction and healing: the records that roots need are copied
// to a new pack, a relocation says so, and the old pack is given up. It is a
// session of its own, the collector's.

// compact starts or goes on with a compaction.
func (w *world) compact(s *state, i int, emit emitFunc) {
	k := &s.collectors[i]
	switch k.step {
	case noCompaction:
		w.startCompaction(s, i, emit)
	case copying:
		if s.packs[k.into].flying {
			return
		}
		if !w.has(relocateFirst) {
			w.giveUpOld(s, i, emit)
			return
		}
		w.publish(s, i, publishing, emit)
	case publishing:
		if !s.packs[k.reloc].flying {
			w.giveUpOld(s, i, emit)
		}
	case publishLate:
		if k.reloc == 0 {
			w.publish(s, i, publishLate, emit)
		} else if !s.packs[k.reloc].flying {
			n := *s
			n.collectors[i].endCompaction()
			emit(say("collector: the compaction ends"), &n)
		}
	}
}

func (k *collector) endCompaction() {
	k.step, k.heal, k.from, k.moved, k.into, k.reloc = noCompaction, false, [2]packID{}, [2]contents{}, 0, 0
}

// startCompaction chooses one source, or two to merge, and registers the new
// pack.
func (w *world) startCompaction(s *state, i int, emit emitFunc) {
	k := &s.collectors[i]
	if s.spent.compactions == w.compactions {
		return
	}
	for a := packID(1); a <= maxPacks; a++ {
		if !s.isSource(k, a) {
			continue
		}
		w.copyInto(s, i, [2]packID{a}, emit)
		for b := a + 1; b <= maxPacks && w.merge; b++ {
			if s.isSource(k, b) {
				w.copyInto(s, i, [2]packID{a, b}, emit)
			}
		}
	}
}

// isSource tells whether a pack can be compacted: it has records that roots
// need, and was LIVE when they were marked.
func (s *state) isSource(k *collector, id packID) bool {
	p := &s.packs[id]
	return p.kind == dataPack && k.needs(id) != 0 && p.owner == ofCommitted && p.row == live
}

func (w *world) copyInto(s *state, i int, from [2]packID, emit emitFunc) {
	n := *s
	k := &n.collectors[i]
	var holds contents
	for j, id := range from {
		if id == 0 {
			continue
		}
		k.moved[j] = k.needs(id)
		holds |= k.moved[j]
		for c := range numContents {
			if k.moved[j]>>c&1 == 0 || s.packs[id].good(c) {
				continue
			}
			if !s.healthy(id, c) {
				return
			}
			k.heal = true
		}
	}
	n.spent.compactions++
	k.from, k.step = from, copying
	k.into = n.newPack(pack{kind: dataPack, owner: ofCollector, born: n.epoch, flying: true, holds: holds})
	w.register(&n, k.into)
	text := "collector: copies"
	if k.heal {
		text = "collector: heals"
	}
	emit(sayFrom(text, from, " into pack %d", k.into), &n)
}

// sayFrom names one or two packs, and what becomes of them.
func sayFrom(act string, from [2]packID, rest string, to packID) step {
	if from[1] == 0 {
		return say(act+" pack %d"+rest, int(from[0]), int(to))
	}
	return say(act+" packs %d and %d"+rest, int(from[0]), int(from[1]), int(to))
}

// healthy tells whether another LIVE pack has a good record of a content.
func (s *state) healthy(but packID, c int) bool {
	for id := packID(1); id <= maxPacks; id++ {
		if p := &s.packs[id]; id != but && p.kind == dataPack && p.row == live && p.owner == ofCommitted && p.good(c) {
			return true
		}
	}
	return false
}

// publish registers the relocation; its Put is flying.
func (w *world) publish(s *state, i int, next compactStep, emit emitFunc) {
	n := *s
	k := &n.collectors[i]
	r := pack{kind: relocation, owner: ofCollector, born: n.epoch, flying: true, from: k.from, moved: k.moved, to: k.into}
	if next == publishLate {
		r.owner, r.stamped = ofCommitted, n.epoch
	}
	k.reloc = n.newPack(r)
	w.register(&n, k.reloc)
	k.step = next
	emit(say("collector: registers relocation %d to pack %d", int(k.reloc), int(k.into)), &n)
}

// giveUpOld is the transaction that commits a compaction. An old pack goes if
// it is still LIVE and no commit has relied on it since the mark: such a
// commit may need records that were not copied. Otherwise nothing is given up,
// and the new pack and its relocation are ordinary packs that a later mark
// needs or does not need.
func (w *world) giveUpOld(s *state, i int, emit emitFunc) {
	n := *s
	k := &n.collectors[i]
	for _, id := range k.from {
		if id == 0 {
			continue
		}
		p := &n.packs[id]
		if p.row != live || w.has(checkStamp) && p.stamped >= k.gen {
			w.see(compactionRefused)
			continue
		}
		p.row, p.doomed = condemned, k.gen
		if k.heal {
			p.mourn = 0
			w.see(packHealed)
			if w.has(healIsFinal) {
				p.row = deleting
			}
		}
		w.see(packCompacted)
	}
	for _, id := range [2]packID{k.into, k.reloc} {
		if id != 0 {
			n.packs[id].owner, n.packs[id].stamped = ofCommitted, n.epoch
		}
	}
	from := k.from
	if k.step == copying {
		k.step = publishLate
	} else {
		k.endCompaction()
	}
	emit(sayFrom("collector: commits the compaction of", from, "", 0), &n)
}

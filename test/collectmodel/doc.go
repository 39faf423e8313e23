// Package collectmodel is the specification of collection (prune) as a model,
// and a search through all its states: TestProtocolHolds visits every state
// within the bounds of its worlds, TestEveryRuleIsNeeded turns one rule off at
// a time and shows what it loses. docs/adr/0005-collection.md tells why the
// protocol is as it is and what the search covered. In brackets are the rules,
// as rules_test.go names them.
//
// # What there is
//
// The database has the epoch E; sessions, ACTIVE, COMMITTED or ABORTED, with a
// term; a row for every pack, LIVE, CONDEMNED or DELETING, with the epoch it
// was born in and the epoch it was last stamped in; points, pending, available,
// deleted (in the bin) or ceased, whose rows name their manifest's pack once
// they are committed; and pins. Packs are data packs, point packs (a manifest
// with its tree; perhaps nodes and chunks, too) and relocations (old place →
// new place). Node packs are to the protocol what data packs are. An id is
// never used twice, and a blob never changes.
//
// Every step below is atomic: one transaction, one Put, one Delete, one list of
// blobs, one read of rows. Between any two of them every other process may go
// on, stop for good, or be taken for dead and replaced by a newer term while it
// still runs; its transactions fail then, but a Put or Delete that it began may
// arrive at any time later.
//
// # A session
//
// It opens in a transaction that pins its parent, which must be available
// [pinParent]. For each chunk it takes the parent's hint; or a hit of the dedup
// index, which learns a pack only after the session that wrote it has committed
// [hitCommitted] and counts only while the pack's row is LIVE [hitLiveRow]; or
// it stores the chunk. A pack gets its row first, in a transaction that needs
// the session ACTIVE in this term, and is put then [registerFirst]. The point
// pack comes last.
//
// The commit is one transaction. It needs the session ACTIVE in this term
// [sessionTerm]. If a pack that the index gave is DELETING or has no row, it is
// refused [refuseDeleting]: the session finds or stores those chunks again, and
// writes another manifest. Otherwise packs that it hit or wrote and that are
// CONDEMNED become LIVE again [rescue], all that it hit [stampHits], also those
// that were LIVE all the time [stampLiveHits], and all that it wrote [stampOwn]
// are stamped with E, the point is available and its row names the manifest,
// and the parent is unpinned. Inherited packs are not stamped: the parent's pin
// kept them until now, and the point's own row does from now on.
//
// A newer term keeps the session's durable data packs whose rows are LIVE. What
// else is registered it may leave to collection, or drop: by a transaction to
// DELETING first, then the blob [recordDrop]. A cancel is a transaction ACTIVE →
// ABORTED, and the point ceases; when it was read back [abortFirst], the blobs
// of the session are deleted, then their rows.
//
// # A collection
//
// One job does it; each of its transactions checks the job's term
// [collectorTerm]. Its compactions are sessions of their own, aborted when a
// newer term takes the job.
//
//  1. In a transaction, E ← E+1 = G [epochFirst].
//  2. Blobs are listed, and rows are read afterwards [listBeforeRows], all in one
//     transaction [oneRead]. Roots are the manifests that the rows of points name
//     [rowNamesManifest], whether they were in the list or not [rowsAreRoots]: of
//     points that are available, in the bin [binIsRoot], or pinned though ceased
//     [pinImage, pinReader, pinParent]. A listed manifest whose point has no row
//     at all is a root, too [unknownIsRoot]. Other manifests are not: those of
//     pending and ceased points, and those that a commit passed over.
//  3. The mark walks the roots. A hint means its own pack if the row is LIVE
//     [liveRowFirst]; else a relocation that was listed, whose row is LIVE and
//     whose session committed [relocationCommitted], leads on, perhaps over
//     several; each is tried until one leads to a LIVE pack [tryAll].
//     Relocations that were used are needed [keepRelocations]. If anything
//     cannot be read or found, the collection stops there and changes nothing
//     [abortUnreadable].
//  4. In a transaction, LIVE packs of every kind that nothing needs become
//     CONDEMNED, unless their session is ACTIVE [spareActive], or they were born
//     [spareNewborn] or stamped [spareStamped] in epoch G or later.
//  5. Compaction copies the needed records of LIVE packs into a new pack, then
//     puts a relocation, then commits: an old pack that is still LIVE and was
//     not stamped in G or later [checkStamp] becomes CONDEMNED, after the
//     relocation is durable [relocateFirst]. One that fails the check stays, and
//     what was written is ordinary garbage. Healing is compaction with the bytes
//     of a damaged record taken from another LIVE record of the same content; the
//     old pack goes to DELETING at once [healIsFinal].
//  6. In a transaction, packs that are CONDEMNED [checkCondemned] become
//     DELETING, which is final; those that this very collection condemned only
//     while no session is ACTIVE [deleteLater]. Then the blob is deleted, and
//     then the row [recordDelete].
//  7. Strays: a blob of any kind [strayKinds] that was listed, had no row when
//     rows were read afterwards, and is neither an unknown manifest nor hinted at
//     by a root, gets a row that says DELETING, and goes the same way. They come
//     from Puts of fenced and aborted sessions that land late.
//
// # Points and readers
//
// A delete moves a point and all below it from available to deleted, unless one
// is read or an open session's parent. In the bin a point ceases at any moment,
// or is undeleted with its deleted ancestors; below a ceased one it cannot be
// [wholeLine]. An image pins a tree in a transaction while its point is
// available, and keeps it whatever becomes of the point. A restore pins its
// point [pinReader], reads each chunk at its hint, else where relocations lead,
// and lists them again as often as all that it knows of is gone
// [readerRereads].
//
// # What must hold
//
// In every state, every chunk of every point that is available, in the bin or
// pinned is readable through hints and relocation blobs alone, and so are
// unknown points. No collection is aborted unless something was damaged or an
// older database was put back. And from every state, once all processes have
// stopped, two quiet collections leave nothing behind that no root needs.
package collectmodel

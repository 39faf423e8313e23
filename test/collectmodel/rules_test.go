package collectmodel

// rule is one rule of the protocol. A search can be made with a rule turned
// off: TestEveryRuleIsNeeded shows what is lost then.
type rule uint8

const (
	// Sessions.
	registerFirst  rule = iota // a pack has its row before its Put begins
	sessionTerm                // a commit is refused to a process of an older term
	hitLiveRow                 // a dedup hit counts only if the pack's row is LIVE
	hitCommitted               // the index learns a pack after its session committed
	stampHits                  // a commit stamps every pack it hit …
	stampLiveHits              // … also those that it finds LIVE
	stampOwn                   // a commit stamps the session's own packs
	rescue                     // a commit turns CONDEMNED packs that it hit LIVE again
	refuseDeleting             // a commit is refused if a pack it hit is DELETING or gone
	pinParent                  // the parent of an open session is pinned
	abortFirst                 // blobs of a cancelled session go after ABORTED was read back
	recordDrop                 // an adopted session's leftovers go through DELETING

	// The mark.
	epochFirst          // the epoch is raised before the rows are read
	listBeforeRows      // blobs are listed before the rows are read
	oneRead             // points and packs are read in one transaction
	rowsAreRoots        // points that rows know are roots, listed or not
	rowNamesManifest    // of a point that rows know, only the manifest its row names is a root
	unknownIsRoot       // a listed manifest of a point without a row is a root
	binIsRoot           // points in the bin are roots
	pinImage            // a tree pinned by an image is a root
	pinReader           // a point that is being read is pinned
	liveRowFirst        // a hint means its own pack while that is LIVE
	tryAll              // of several relocations of a record, each is tried
	relocationCommitted // relocations count once their session committed
	keepRelocations     // relocations that were used are needed
	abortUnreadable     // what cannot be read stops the collection

	// What the mark is used for.
	spareActive    // packs of ACTIVE sessions are not condemned
	spareNewborn   // packs born since the collection began are not condemned
	spareStamped   // packs stamped since the collection began are not condemned
	checkStamp     // compaction: the old pack must not be stamped since then
	relocateFirst  // compaction: the relocation is durable before the old pack is condemned
	healIsFinal    // a pack that was healed goes to DELETING: nobody rescues it
	checkCondemned // CONDEMNED → DELETING looks at the row again
	recordDelete   // a blob is deleted after its row says DELETING
	deleteLater    // a pack condemned now is not deleted while sessions are ACTIVE
	strayKinds     // strays are blobs of any kind, not data packs alone
	collectorTerm  // the collector's transactions check its term

	// Readers and points.
	readerRereads // a reader that finds nothing lists the relocations again
	wholeLine     // undelete takes deleted ancestors along, and is refused below ceased ones

	numRules
)

var ruleNames = [numRules]string{
	registerFirst: "register before Put", sessionTerm: "term check of the session's commit",
	hitLiveRow: "a hit needs a LIVE row", hitCommitted: "the index learns after the commit",
	stampHits: "stamp hit packs", stampLiveHits: "stamp hit packs that are still LIVE",
	stampOwn: "stamp own packs", rescue: "rescue CONDEMNED packs", refuseDeleting: "refuse DELETING packs",
	pinParent: "pin the parent", abortFirst: "read ABORTED back before deleting", recordDrop: "record what an adoption drops",
	epochFirst: "raise the epoch before reading rows", listBeforeRows: "list blobs before reading rows",
	oneRead: "read points and packs at once", rowsAreRoots: "rows are roots, listed or not", rowNamesManifest: "the row names its manifest",
	unknownIsRoot: "unknown manifests are roots", binIsRoot: "the bin is a root", pinImage: "image pins are roots",
	pinReader: "readers pin", liveRowFirst: "a LIVE row comes before relocations",
	tryAll: "try every relocation", relocationCommitted: "only committed relocations count", keepRelocations: "keep relocations that are used",
	abortUnreadable: "abort when something is unreadable", spareActive: "spare packs of ACTIVE sessions",
	spareNewborn: "spare newborn packs", spareStamped: "spare stamped packs", checkStamp: "check the stamp when compacting",
	relocateFirst: "relocation before condemning", healIsFinal: "a healed pack goes to DELETING",
	checkCondemned: "check CONDEMNED when deleting", recordDelete: "DELETING before the blob's Delete",
	deleteLater: "no deletion of the newly condemned beside sessions", strayKinds: "strays of any kind", collectorTerm: "term check of the collector",
	readerRereads: "readers list relocations again", wholeLine: "undelete whole lines",
}

func (r rule) String() string { return ruleNames[r] }

// ruleSet is the rules that are turned off.
type ruleSet uint64

func without(rs ...rule) ruleSet {
	var off ruleSet
	for _, r := range rs {
		off |= 1 << r
	}
	return off
}

package collectmodel

var (
	backupX  = sessionSpec{want: contentX}
	backupY  = sessionSpec{want: contentY}
	backupXY = sessionSpec{want: bothXY}
)

// worlds are searched by every run of the tests. Each has all the protocol in
// it, and enough of everything for the troubles that it is named after.
func worlds() []*world {
	return []*world{
		{
			name: "two backups", start: emptyRepository,
			sessions: []sessionSpec{backupXY, backupX}, collections: 2, deletes: 1,
		},
		{
			name: "bin and pins", start: parentAndChild,
			sessions: []sessionSpec{backupX}, collections: 1, deletes: 2, undeletes: 1, images: 1, readers: 1,
		},
		{
			name: "fenced and cancelled backups", start: sharedPack,
			sessions: []sessionSpec{backupX}, sessionTerms: 2, cancels: true, collections: 2, deletes: 1,
		},
		{
			name: "three terms", start: emptyRepository,
			sessions: []sessionSpec{backupX}, sessionTerms: 3, collections: 2, deletes: 1,
		},
		{
			name: "compaction beside two backups", start: sharedPack,
			sessions: []sessionSpec{backupX, backupY}, collections: 1, compactions: 1, deletes: 1,
		},
		{
			name: "merging", start: twoPacks,
			sessions: []sessionSpec{backupX}, collections: 2, compactions: 1, merge: true, deletes: 1,
		},
		{
			name: "fenced collector", start: sharedPack,
			sessions: []sessionSpec{backupY}, collections: 3, compactions: 2, collectorTerms: 1,
		},
		{
			name: "restore beside compaction", start: relocated,
			sessions: []sessionSpec{backupX}, collections: 2, compactions: 2, readers: 1,
		},
		{
			name: "healing", start: twoCopies,
			sessions: []sessionSpec{backupX}, collections: 2, compactions: 1, rots: 1,
		},
		{
			name: "small points", start: parentAndChild,
			sessions: []sessionSpec{backupXY}, collections: 1, inline: true, deletes: 2, images: 1,
		},
		{
			name: "condemned one by one", start: rescued,
			sessions: []sessionSpec{backupX}, collections: 2, compactions: 1, onePack: true,
		},
		{
			name: "older database", start: olderDatabase,
			sessions: []sessionSpec{backupX}, collections: 2, deletes: 2, mayAbort: true,
		},
		{
			name: "older database, unknown pack", start: unknownPack,
			sessions: []sessionSpec{backupX}, collections: 2, deletes: 2, mayAbort: true,
		},
	}
}

// largeWorlds are searched with CAIRN_LONG.
func largeWorlds() []*world {
	return []*world{
		{
			name: "two backups, three collections", start: emptyRepository,
			sessions: []sessionSpec{backupXY, backupX}, collections: 3, deletes: 2,
		},
		{
			name: "bin and pins, twice", start: parentAndChild,
			sessions: []sessionSpec{backupXY}, collections: 2, deletes: 2, undeletes: 1, images: 1, readers: 1,
		},
		{
			name: "three terms, two chunks", start: emptyRepository,
			sessions: []sessionSpec{backupXY}, sessionTerms: 3, collections: 1,
		},
		{
			name: "compaction, two backups, twice", start: sharedPack,
			sessions: []sessionSpec{backupX, backupY}, collections: 2, compactions: 1, deletes: 1,
		},
		{
			name: "compaction, fenced backup, image", start: sharedPack,
			sessions: []sessionSpec{backupX}, sessionTerms: 2, collections: 2, compactions: 1, deletes: 1, images: 1,
		},
		{
			name: "merging beside a backup of both", start: twoPacks,
			sessions: []sessionSpec{backupXY}, collections: 2, compactions: 1, merge: true, deletes: 1,
		},
		{
			name: "fenced collector, merging", start: twoPacks,
			sessions: []sessionSpec{backupX}, collections: 3, compactions: 2, merge: true, collectorTerms: 1,
		},
		{
			name: "fenced collector, restore", start: relocated,
			sessions: []sessionSpec{backupX}, collections: 2, compactions: 2, readers: 1, collectorTerms: 1,
		},
		{
			name: "healing, three collections", start: twoCopies,
			sessions: []sessionSpec{backupX}, collections: 3, compactions: 2, rots: 1,
		},
		{
			name: "healing beside deletes", start: twoCopies,
			sessions: []sessionSpec{backupX}, collections: 2, compactions: 1, rots: 1, deletes: 1,
		},
	}
}

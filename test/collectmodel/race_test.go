//go:build race

package collectmodel

// raceDetector says that every step costs ten times as much.
const raceDetector = true

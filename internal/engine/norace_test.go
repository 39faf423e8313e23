//go:build !race

package engine

// raceDetector says that everything takes ten times as long.
const raceDetector = false

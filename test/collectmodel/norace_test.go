//go:build !race

package collectmodel

const raceDetector = false

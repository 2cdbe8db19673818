//go:build race

package e2e

// raceDetector is whether the race detector watches, which costs memory and finds nothing in a
// browser.
const raceDetector = true

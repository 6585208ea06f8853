//go:build race

package bothways

func init() { isRace = true }

package cli

import (
	"fmt"
	"math"
	"math/big"
	"regexp"
	"strconv"
	"strings"
)

// sizeUnits are powers of two throughout: volumes are sold in GB of 2^30.
var sizeUnits = map[string]uint{
	"": 30, "B": 0,
	"K": 10, "KB": 10, "KIB": 10,
	"M": 20, "MB": 20, "MIB": 20,
	"G": 30, "GB": 30, "GIB": 30,
	"T": 40, "TB": 40, "TIB": 40,
}

var sizeForm = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?) *([A-Za-z]*)$`)

// parseSize reads a size in bytes: a number of GB (2^30) or one with a unit.
func parseSize(s string) (int64, error) {
	m := sizeForm.FindStringSubmatch(strings.TrimSpace(s))
	shift, known := uint(0), false
	if m != nil {
		shift, known = sizeUnits[strings.ToUpper(m[2])]
	}
	if !known {
		return 0, fmt.Errorf("size %q is none: say 10 (GB of 2^30 bytes), 1.5G, 512M or 4096B", s)
	}
	n, _ := new(big.Rat).SetString(m[1])
	n.Mul(n, new(big.Rat).SetInt(new(big.Int).Lsh(big.NewInt(1), shift)))
	switch {
	case !n.IsInt():
		return 0, fmt.Errorf("size %q is not a whole number of bytes", s)
	case n.Sign() == 0:
		return 0, fmt.Errorf("size %q is nothing: a volume needs at least one byte", s)
	case n.Num().Cmp(big.NewInt(math.MaxInt64)) > 0:
		return 0, fmt.Errorf("size %q is more than this program can count", s)
	}
	return n.Num().Int64(), nil
}

// formatBytes writes n with a binary unit and at most one decimal.
func formatBytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	v, i := float64(n)/1024, 0
	for v >= 1023.95 && i < len(units)-1 {
		v /= 1024
		i++
	}
	return strings.TrimSuffix(strconv.FormatFloat(v, 'f', 1, 64), ".0") + " " + units[i:i+1] + "iB"
}

// exactBytes is formatBytes followed by the count itself.
func exactBytes(n int64) string {
	if n < 1024 {
		return formatBytes(n)
	}
	return fmt.Sprintf("%s (%d bytes)", formatBytes(n), n)
}

package contract

import (
	"bytes"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// DiffTypes names the fields in which got differs from want, separated by commas. A nil and an empty slice, map or
// []byte count as the same, because a peer in a language without nil slices cannot send the difference back.
func DiffTypes(want, got Types) string {
	var names []string
	w, g := reflect.ValueOf(want), reflect.ValueOf(got)
	for i := range w.NumField() {
		if !sameField(w.Field(i).Interface(), g.Field(i).Interface()) {
			names = append(names, w.Type().Field(i).Name)
		}
	}
	return strings.Join(names, ",")
}

func sameField(want, got any) bool {
	switch w := want.(type) {
	case []byte:
		return bytes.Equal(w, got.([]byte))
	case []int:
		return slices.Equal(w, got.([]int))
	case []string:
		return slices.Equal(w, got.([]string))
	case []Inner:
		return slices.Equal(w, got.([]Inner))
	case map[string]string:
		return maps.Equal(w, got.(map[string]string))
	default:
		return reflect.DeepEqual(want, got)
	}
}

// DiffTimes names the fields in which got is another instant than want. The zone does not count, because msgpack's
// timestamp has none.
func DiffTimes(want, got Times) string {
	var names []string
	if !want.Seconds.Equal(got.Seconds) {
		names = append(names, "Seconds")
	}
	if !want.Nanos.Equal(got.Nanos) {
		names = append(names, "Nanos")
	}
	if !want.Far.Equal(got.Far) {
		names = append(names, "Far")
	}
	if !want.Before.Equal(got.Before) {
		names = append(names, "Before")
	}
	return strings.Join(names, ",")
}

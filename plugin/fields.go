package plugin

import (
	"maps"

	"github.com/hashicorp/vault/sdk/framework"
)

// field returns a request's field, or its default. The framework has checked the
// value against the schema, so T is what the schema says; another type would be a
// defect of ours and gives the zero value.
func field[T any](data *framework.FieldData, name string) T {
	value, _ := data.Get(name).(T)
	return value
}

// givenField is field for one that may be missing; ok says whether it was given.
func givenField[T any](data *framework.FieldData, name string) (value T, ok bool) {
	raw, given := data.GetOk(name)
	if !given {
		return value, false
	}
	value, ok = raw.(T)
	return value, ok
}

// withFields returns one set of fields made of two.
func withFields(a, b map[string]*framework.FieldSchema) map[string]*framework.FieldSchema {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

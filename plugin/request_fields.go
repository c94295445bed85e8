package plugin

import "github.com/hashicorp/vault/sdk/framework"

// fieldOf returns a field of a request, or its default. The schema makes it a T.
func fieldOf[T any](d *framework.FieldData, name string) T {
	value, _ := d.Get(name).(T)
	return value
}

// fieldGiven returns a field when the request has it.
func fieldGiven[T any](d *framework.FieldData, name string) (T, bool) {
	value, given := d.GetOk(name)
	typed, ok := value.(T)
	return typed, given && ok
}

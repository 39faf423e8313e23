package httpapi_test

import (
	"cairn/internal/httpapi"
	"cairn/internal/service"
)

// The fake stands for the real one.
var (
	_ httpapi.Service = (*service.Service)(nil)
	_ httpapi.Service = (*fake)(nil)
)
